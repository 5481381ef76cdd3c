"""Data of reward models and direct preference optimisation: pairs of answers to one question."""

from __future__ import annotations

from bluelm_lightning.data.pairs import PairEncoder
from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.types import StageModel


class PreferenceDataModule(MultimodalDataModule):
    """Packs pairs side by side: documents 2i and 2i + 1 of a batch are the preferred and the other answer.

    A record holds ``messages`` up to the question, ``chosen`` and ``rejected``; see `data.pairs`. All else as in the
    base class; a pair must fit a row: one that does not is left out and reported, also with ``overlong="split"``.
    """

    def prepare(self, model: StageModel) -> None:
        super().prepare(model)
        self.encoder = PairEncoder(self.tokenizer, model.image_spec, self.max_grid, self.thumbnail)
