"""DiscriminativeRewardModel: a number for a conversation, read off the state of its last token."""

from __future__ import annotations

import torch
from torch import Tensor

from bluelm_lightning.components.base import Component
from bluelm_lightning.components.value import ValueHead
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.types import PackedBatch


class DiscriminativeRewardModel(Component):
    """``forward(batch) -> float32[D]``, one score a document of the packed batch: the greater, the better.

    Source: the report guards safety by a discriminative reward model; the head (two layers over the last state) is our
    choice.

    Args:
        vlm: reads the conversation.
        hidden_dim: width inside the head; default: the decoder's.
    """

    def __init__(self, vlm: VisionLanguageModel, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.vlm, self.head = vlm, ValueHead(vlm.decoder.width, hidden_dim)

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.head(last_states(self.vlm(batch), batch))


def last_states(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The state of each document's last token: float[B, T, D] -> float[documents, D]."""
    documents = batch.segments.flatten()
    places, held = torch.arange(len(documents), device=documents.device), documents >= 0
    last = torch.zeros(len(batch.sample_ids), dtype=torch.long, device=documents.device)
    return hidden.flatten(0, 1)[last.scatter_reduce(0, documents[held], places[held], "amax")]
