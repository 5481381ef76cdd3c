"""Data of reward models and direct preference optimisation: pairs of answers to one question."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.data.pairs import PairEncoder
from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.sources import SourceSpec
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import StageModel


class PreferenceDataModule(MultimodalDataModule):
    """Packs pairs side by side: documents 2i and 2i + 1 of a batch are the preferred and the other answer.

    A record holds ``messages`` up to the question, ``chosen`` and ``rejected``; see `data.pairs`. All else as in the
    base class; a pair must fit a row: one that does not is left out and reported, also with ``overlong="split"``.
    Of a source, ``thinking_share`` and ``cut_share`` hold for both answers of a pair at once.

    Raises:
        ConfigError: a source has a ``stated_share``: two traces keep two budgets, and the prompts would differ.
    """

    gives = "pairs"

    def __init__(self, tokenizer: str, sources: list[SourceSpec], **kwargs: Any) -> None:
        super().__init__(tokenizer, sources, **kwargs)
        for spec in self.specs:
            if spec.stated_share:
                reason = f"{spec.stated_share} for {spec.label!r}: the two answers would be told different budgets"
                raise ConfigError(f"{reason}; set it to 0", "data.sources.stated_share")

    def prepare(self, model: StageModel) -> None:
        super().prepare(model)
        self.encoder = PairEncoder(self.tokenizer, model.image_spec, self.max_grid, self.thumbnail)
