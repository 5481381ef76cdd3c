"""ValueHead: the return to be expected from each state of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bluelm_lightning.components.base import Component
from bluelm_lightning.errors import ConfigError


class ValueHead(Component):
    """``forward(hidden: float[..., decoder_dim]) -> float32[...]``, one value a state.

    A two-layer perceptron over normalised states. Its last layer starts at zero, so the first values are exactly 0.
    Source: the report optimises with GRPO, which needs no values; the head is for PPO, and our choice.

    Args:
        decoder_dim: width of the states.
        hidden_dim: width in between; default: that of the states.

    Raises:
        ConfigError: a width below 1.
    """

    def __init__(self, decoder_dim: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        inner = decoder_dim if hidden_dim is None else hidden_dim
        if min(decoder_dim, inner) < 1:
            raise ConfigError(f"decoder_dim={decoder_dim}, hidden_dim={inner}; give 1 or more", "model.value")
        self.decoder_dim = decoder_dim
        self.layers = nn.Sequential(nn.LayerNorm(decoder_dim), nn.Linear(decoder_dim, inner), nn.GELU())
        self.out = nn.Linear(inner, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # a return is a small difference of large sums
            return self.out(self.layers(hidden.float()))[..., 0]
