"""Data of supervised fine-tuning: conversations, with and without thinking."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.sources import SourceSpec


class SFTDataModule(MultimodalDataModule):
    """A conversation that does not fit a row is reported and left out: half an answer teaches to stop early."""

    gives = "documents"

    def __init__(self, tokenizer: str, sources: list[SourceSpec], overlong: str = "skip", **kwargs: Any) -> None:
        super().__init__(tokenizer, sources, overlong=overlong, **kwargs)
