"""Data of pre-training: documents and image-text pairs."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.sources import SourceSpec


class PretrainDataModule(MultimodalDataModule):
    """Texts longer than a row are cut into rows, so that no token is lost; all else as in the base class."""

    gives = "documents"

    def __init__(self, tokenizer: str, sources: list[SourceSpec], overlong: str = "split", **kwargs: Any) -> None:
        super().__init__(tokenizer, sources, overlong=overlong, **kwargs)
