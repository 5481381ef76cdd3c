"""Parts that bluelm-lightning knows nothing of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bluelm_lightning.components import Projector
from bluelm_lightning.types import Sample


class PoolProjector(Projector):
    """All patches of a tile pooled to one token.

    Args:
        vision_dim: width of the vision tower.
        decoder_dim: width of the decoder.
        scale: of the result.
    """

    def __init__(self, vision_dim: int, decoder_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.vision_dim, self.decoder_dim, self.scale = vision_dim, decoder_dim, scale
        self.gate = nn.Parameter(torch.ones(vision_dim))
        self.out = nn.Linear(vision_dim, decoder_dim)

    def num_tokens(self, num_patches: int) -> int:
        return 1

    def forward(self, features: Tensor) -> Tensor:
        """features: float[N, P, vision_dim] -> float[N, 1, decoder_dim]."""
        return self.scale * self.out((features * self.gate).mean(1, keepdim=True))


class CountingSource:
    """Sums that count upwards; no base class.

    Args:
        size: number of samples.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        question, answer = f"{index} + 1 =", str(index + 1)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Sample(id=f"count-{index}", source="counting", messages=turns)  # type: ignore[arg-type]
