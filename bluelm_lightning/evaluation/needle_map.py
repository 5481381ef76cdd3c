"""Accuracy of looking up by where the answer stands (depth) and how long the text is, and its picture.

Source: the common "needle in a haystack" test; the report activates 32K after pre-training at 4K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.errors import DataError
from bluelm_lightning.evaluation.evaluate import answer_all
from bluelm_lightning.types import Sample


@dataclass
class NeedleMap:
    """Shares of right answers.

    Args:
        lengths: of the texts in tokens, the columns.
        depths: middles of the bands of depth, 0 = at the start and 1 = at the end, the rows.
        accuracy: ``accuracy[row][column]`` in [0, 1]; ``None`` where there was no sample.
        by_length: accuracy over all depths, by column.
    """

    lengths: list[int]
    depths: list[float]
    accuracy: list[list[float | None]]
    by_length: list[float]


def needle_map(
    vlm: VisionLanguageModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    bands: int = 5,
    batch_tokens: int = 8192,
    max_new_tokens: int = 8,
) -> NeedleMap:
    """Greedy answers, without thinking, to the last turn of each sample.

    Args:
        vlm: the model.
        encoder: of its prompts.
        samples: with an answer, and ``meta["tokens"]`` (length) and ``meta["depth"]`` (0 to 1) of the needle.
        bands: of depth, equally wide.
        batch_tokens: of the texts that are read together.
        max_new_tokens: of an answer.

    Raises:
        DataError: a sample has no answer, length or depth.
    """
    for sample in samples:
        if not {"tokens", "depth"} <= set(sample.meta):
            raise DataError("no length and depth; set meta.tokens and meta.depth", sample.where or sample.id)
    lengths = sorted({sample.meta["tokens"] for sample in samples})
    right: dict[tuple[int, int], list[bool]] = {}
    for length in lengths:
        same = [sample for sample in samples if sample.meta["tokens"] == length]
        rows = max(1, batch_tokens // length)
        for item in answer_all(vlm, encoder, same, False, max_new_tokens=max_new_tokens, batch_size=rows):
            band = min(int(item.sample.meta["depth"] * bands), bands - 1)
            right.setdefault((band, length), []).append(item.right)
    accuracy = [[_share(right.get((band, length), [])) for length in lengths] for band in range(bands)]
    whole = [[hit for (_, of), hits in right.items() if of == length for hit in hits] for length in lengths]
    depths = [(band + 0.5) / bands for band in range(bands)]
    return NeedleMap(lengths, depths, accuracy, [sum(hits) / len(hits) for hits in whole])


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def draw_needle_maps(path: Path, maps: dict[str, NeedleMap], trained: int | None = None) -> None:
    """A PNG: one panel a map, side by side; depth goes down, length to the right; percents of right answers.

    Args:
        path: of the picture.
        maps: by the title of their panel.
        trained: length of pre-training in tokens; a line parts the lengths beyond it.
    """
    from matplotlib.figure import Figure  # no display, no global state

    figure = Figure(figsize=(3.6 * len(maps) + 0.8, 3.4), layout="constrained")
    axes: Any = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (title, told) in zip(axes, maps.items()):
        cells = [[float("nan") if share is None else share for share in row] for row in told.accuracy]
        shown = axis.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for row, shares in enumerate(cells):
            for column, share in enumerate(shares):
                if share == share:  # not a cell without samples
                    ink = "white" if abs(share - 0.5) > 0.4 else "black"
                    axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=ink)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(told.lengths)), [str(length) for length in told.lengths])
        axis.set_yticks(range(len(told.depths)), [f"{100 * depth:.0f} %" for depth in told.depths])
        axis.set_xlabel("length of the text, tokens")
        if trained is not None:
            axis.axvline(sum(length <= trained for length in told.lengths) - 0.5, color="black", linestyle="--")
    axes[0].set_ylabel("depth of the needle")
    figure.colorbar(shown, ax=list(axes), label="right answers", shrink=0.9)
    figure.savefig(path, dpi=100)
