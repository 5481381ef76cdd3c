"""Projectors: from patch features of the vision tower to tokens of the decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluelm_lightning.components.base import Projector
from bluelm_lightning.errors import ConfigError


def _side(num_patches: int) -> int:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        fix = "choose an image_size that is a multiple of the patch size"
        raise ConfigError(f"{num_patches} patches do not form a square; {fix}")
    return side


class MLPProjector(Projector):
    """The report's adapter: every 2 x 2 block of patches is concatenated, then two linear layers with a GELU.

    An odd side is padded with zeros at the right and bottom: 27 x 27 -> 28 x 28 -> 14 x 14 = 196 tokens.
    Source: BlueLM-2.5-3B (two-layer MLP, 2 x 2 downsampling); the padding follows BlueLM-V-3B; GELU is our choice.

    Args:
        vision_dim: width of the vision tower.
        decoder_dim: width of the decoder.
        hidden_dim: width between the two layers; default ``decoder_dim``.
        downsample: side of the concatenated block.
    """

    def __init__(self, vision_dim: int, decoder_dim: int, hidden_dim: int | None = None, downsample: int = 2) -> None:
        super().__init__()
        self.vision_dim, self.decoder_dim, self.downsample = vision_dim, decoder_dim, downsample
        hidden = hidden_dim or decoder_dim
        self.mlp = nn.Sequential(
            nn.Linear(vision_dim * downsample**2, hidden), nn.GELU(), nn.Linear(hidden, decoder_dim)
        )

    def num_tokens(self, num_patches: int) -> int:
        return math.ceil(_side(num_patches) / self.downsample) ** 2

    def forward(self, features: Tensor) -> Tensor:
        """features: float[N, P, vision_dim] -> float[N, Q, decoder_dim]."""
        num, patches, width = features.shape
        side, step = _side(patches), self.downsample
        pad = -side % step
        grid = F.pad(features.view(num, side, side, width), (0, 0, 0, pad, 0, pad))
        half = (side + pad) // step
        blocks = grid.view(num, half, step, half, step, width).transpose(2, 3)
        return self.mlp(blocks.reshape(num, half * half, step * step * width))


class LinearProjector(Projector):
    """One linear layer, one token for each patch. Source: LLaVA; the plainest baseline."""

    def __init__(self, vision_dim: int, decoder_dim: int) -> None:
        super().__init__()
        self.vision_dim, self.decoder_dim = vision_dim, decoder_dim
        self.linear = nn.Linear(vision_dim, decoder_dim)

    def num_tokens(self, num_patches: int) -> int:
        return num_patches

    def forward(self, features: Tensor) -> Tensor:
        """features: float[N, P, vision_dim] -> float[N, P, decoder_dim]."""
        return self.linear(features)


class ResamplerProjector(Projector):
    """A fixed number of learned queries attend to the patches once. Source: the resampler of Flamingo and Qwen-VL.

    Args:
        vision_dim: width of the vision tower.
        decoder_dim: width of the decoder.
        num_queries: tokens a tile, whatever the number of patches.
        num_heads: attention heads; must divide ``decoder_dim``.
    """

    def __init__(self, vision_dim: int, decoder_dim: int, num_queries: int = 64, num_heads: int = 8) -> None:
        super().__init__()
        if decoder_dim % num_heads:
            raise ConfigError(f"decoder_dim {decoder_dim} is not a multiple of num_heads {num_heads}", "num_heads")
        self.vision_dim, self.decoder_dim, self.num_heads = vision_dim, decoder_dim, num_heads
        self.queries = nn.Parameter(torch.randn(num_queries, decoder_dim) * 0.02)
        self.norm = nn.LayerNorm(vision_dim)
        self.key_value = nn.Linear(vision_dim, 2 * decoder_dim)
        self.out = nn.Linear(decoder_dim, decoder_dim)

    def num_tokens(self, num_patches: int) -> int:
        return self.queries.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """features: float[N, P, vision_dim] -> float[N, num_queries, decoder_dim]."""
        num, patches, _ = features.shape
        heads, width = self.num_heads, self.decoder_dim // self.num_heads
        key, value = self.key_value(self.norm(features)).view(num, patches, 2, heads, width).permute(2, 0, 3, 1, 4)
        query = self.queries.to(key.dtype).view(1, -1, heads, width).transpose(1, 2).expand(num, -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))
