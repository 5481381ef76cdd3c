"""``--summary``: what a model weighs and costs, counted on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bluelm_lightning.data.tiling import count_tiles
from bluelm_lightning.types import ImageSpec


@dataclass
class Row:
    """One component."""

    component: str
    kind: str
    parameters: int
    trainable: int


@dataclass
class Summary:
    """Everything that the table shows.

    FLOPs are those of a forward pass; training costs about three times as much. The decoder's are counted at half a row
    of context, the mean over a row that is one document.
    """

    rows: list[Row]
    tile_size: int
    tokens_per_tile: int
    picture: int  # side in pixels of the largest picture that is not scaled down
    tiles: int  # without the thumbnail
    thumbnail: bool
    row_tokens: int
    decoder_flops_per_token: int
    vision_flops_per_tile: int

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def tokens_per_image(self) -> int:
        return (self.tiles + self.thumbnail) * self.tokens_per_tile

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": self.parameters, "tokens_per_image": self.tokens_per_image}


def summarize(stage: Any, max_grid: int = 4, thumbnail: bool = False, row_tokens: int = 4096) -> Summary:
    """Counts over the components of ``stage.vlm``; the stage may be on the meta device.

    Args:
        stage: a :class:`bluelm_lightning.stages.Stage`.
        max_grid: of the data module.
        thumbnail: of the data module.
        row_tokens: of the data module.
    """
    vlm, spec = stage.vlm, stage.image_spec
    side = max_grid * spec.tile_size
    tiles = count_tiles(side, side, spec.tile_size, max_grid=max_grid, thumbnail=False)
    return Summary(
        rows=list(_rows(stage)),
        tile_size=spec.tile_size,
        tokens_per_tile=spec.tokens_per_tile,
        picture=side,
        tiles=tiles,
        thumbnail=thumbnail and tiles > 1,
        row_tokens=row_tokens,
        decoder_flops_per_token=vlm.decoder.flops_per_token(row_tokens // 2),
        vision_flops_per_tile=_vision_flops(vlm, spec),
    )


def image_settings(config: Any) -> dict[str, Any]:
    """What `summarize` needs of the data module's settings; a module that has no such settings gets the defaults."""
    arguments = config.data.get("init_args") or {}
    known = ("max_grid", "thumbnail", "row_tokens")
    return {key: arguments[key] for key in known if arguments.get(key) is not None}


def _vision_flops(vlm: Any, spec: ImageSpec) -> int:
    if not hasattr(vlm, "vision"):
        return 0
    return vlm.vision.flops_per_image() + _projector_flops(vlm.projector, spec)


def _projector_flops(projector: Any, spec: ImageSpec) -> int:
    """Every weight meets every token once: exact for linear layers, close for the others."""
    return 2 * projector.num_parameters() * spec.tokens_per_tile


def _rows(stage: Any) -> Iterator[Row]:
    """The model's parts, then what else the stage holds; tied weights count once."""
    seen: set[nn.Parameter] = set()
    parts = [*stage.vlm.named_children(), ("other", stage)]
    for name, module in parts:
        own = [parameter for parameter in module.parameters() if parameter not in seen]
        seen.update(own)
        if own or name != "other":
            trainable = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            yield Row(name, type(module).__name__, sum(parameter.numel() for parameter in own), trainable)


def render(summary: Summary) -> str:
    """The table as text."""
    total = Row("total", "", summary.parameters, summary.trainable)
    lines = [f"{'component':<12} {'class':<24} {'parameters':>15} {'trainable':>10}"]
    for row in [*summary.rows, total]:
        share = f"{100 * row.trainable / max(row.parameters, 1):.1f} %"
        size = f"{row.parameters:,}"
        lines.append(f"{row.component:<12} {row.kind:<24} {size:>15} {share:>10}")
    thumbnail = f" + {summary.tokens_per_tile} (thumbnail)" if summary.thumbnail else ""
    tile, picture = f"{summary.tile_size} x {summary.tile_size}", f"{summary.picture} x {summary.picture}"
    vision, decoder = _short(summary.vision_flops_per_tile), _short(summary.decoder_flops_per_token)
    lines += [
        "",
        f"vision + projector  {vision}FLOP a tile of {tile}, forward",
        f"decoder             {decoder}FLOP a token, forward, mean over a row of {summary.row_tokens} tokens",
        f"largest picture     {picture}: {summary.tiles} x {summary.tokens_per_tile}{thumbnail}"
        f" = {summary.tokens_per_image} tokens",
    ]
    return "\n".join(lines)


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} "
