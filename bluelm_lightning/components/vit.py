"""Vision towers from timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluelm_lightning.components.base import VisionEncoder
from bluelm_lightning.errors import ConfigError


class ViTEncoder(VisionEncoder):
    """A timm vision transformer that returns patch features (class and register tokens are dropped).

    Source: the report's tower is SigLIP2 so400m, patch 14, at 378 px: 27 x 27 patches of width 1152.

    Args:
        model_name: timm model, ``vit_so400m_patch14_siglip_378`` is the report's.
        image_size: side of a tile in pixels; position embeddings are resized to it. Default: the model's own.
        weights: ``None`` for random weights, ``"timm"`` for the pretrained weights that timm knows under
            ``model_name``, a Hugging Face id ``"hf-hub:OWNER/NAME"``, or a local file (safetensors, or a torch file
            read without unpickling code). Files with transformers' SigLIP names are converted; they want
            ``shape: {act_layer: gelu_tanh}``.
        shape: keyword arguments of the timm model, for other shapes:
            ``{embed_dim: 128, depth: 4, num_heads: 4, patch_size: 8}``.
        gradient_checkpointing: recompute blocks in the backward pass instead of storing their activations.
        mean: per-channel mean subtracted from images in [0, 1]; default: the model's own.
        std: per-channel divisor; default: the model's own.

    Raises:
        ConfigError: unknown ``model_name``, missing ``weights`` file, or weights that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_name: str = "vit_so400m_patch14_siglip_378",
        image_size: int | None = None,
        weights: str | None = None,
        shape: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.model = _create(model_name, image_size, weights, shape or {})
        self.model.set_grad_checkpointing(gradient_checkpointing)
        grid = self.model.patch_embed.grid_size
        self.image_size = int(self.model.patch_embed.img_size[0])
        self.num_patches = int(grid[0] * grid[1])
        self.width = int(self.model.num_features)
        own = self.model.pretrained_cfg
        for name, given, default in (("mean", mean, own.get("mean")), ("std", std, own.get("std"))):
            values = torch.tensor(given or default or [0.5] * 3, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, values.to(torch.empty(0).device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: float[N, 3, S, S] in [0, 1] -> float[N, P, width]."""
        features = self.model.forward_features((images - self.mean) / self.std)
        return features[:, self.model.num_prefix_tokens :]

    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)

    def depth_of(self, name: str) -> tuple[int, int]:
        """Embeddings have depth 0, block i has depth i + 1, the last norm the greatest."""
        deepest = len(self.model.blocks) + 1
        if name.startswith("model.blocks."):
            return int(name.split(".")[2]) + 1, deepest
        return (deepest, deepest) if name.startswith("model.norm.") else (0, deepest)

    def flops_per_image(self) -> int:
        blocks = sum(p.numel() for p in self.model.blocks.parameters())
        patch = sum(p.numel() for p in self.model.patch_embed.parameters())
        attention = 4 * len(self.model.blocks) * self.num_patches * self.width
        return self.num_patches * (2 * (blocks + patch) + attention)


def _create(model_name: str, image_size: int | None, weights: str | None, shape: dict[str, Any]) -> Any:
    import timm

    options = {"num_classes": 0, "global_pool": "", **({"img_size": image_size} if image_size else {}), **shape}
    remote = weights is not None and weights.startswith("hf-hub:")
    on_meta = torch.empty(0).device.type == "meta"  # --summary: shapes only, nothing is read
    local = weights is not None and weights != "timm" and not remote
    if local and not Path(str(weights)).is_file():
        raise ConfigError(f"file {weights} does not exist; give 'timm', 'hf-hub:OWNER/NAME' or a file", "weights")
    pretrained = weights is not None and not (local or on_meta)
    try:
        model = timm.create_model(str(weights) if remote else model_name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"timm cannot build {model_name!r} with shape={shape}: {error}", "model_name") from error
    lacks = [part for part in ("patch_embed", "blocks", "num_prefix_tokens") if not hasattr(model, part)]
    if lacks:
        raise ConfigError(f"{model_name} is no plain transformer (no {lacks[0]}); choose a vit_* model", "model_name")
    rows, columns = model.patch_embed.grid_size  # type: ignore[union-attr, misc]
    if rows != columns:
        fix = "set image_size to one number"
        raise ConfigError(f"{model_name} has {rows} x {columns} patches, not a square; {fix}", "image_size")
    if local and not on_meta:
        from bluelm_lightning.components.vision_weights import load_vision_weights

        load_vision_weights(model, str(weights))
    return model
