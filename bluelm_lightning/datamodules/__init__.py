"""LightningDataModules over ``bluelm_lightning.data``."""

from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.preference import PreferenceDataModule
from bluelm_lightning.datamodules.pretrain import PretrainDataModule
from bluelm_lightning.datamodules.prompts import PromptDataModule
from bluelm_lightning.datamodules.sft import SFTDataModule
from bluelm_lightning.datamodules.sources import SourceSpec

__all__ = [
    "MultimodalDataModule",
    "PreferenceDataModule",
    "PretrainDataModule",
    "PromptDataModule",
    "SFTDataModule",
    "SourceSpec",
]
