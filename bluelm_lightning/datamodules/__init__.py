"""LightningDataModules over ``bluelm_lightning.data``."""

from bluelm_lightning.datamodules.base import MultimodalDataModule, SourceSpec
from bluelm_lightning.datamodules.pretrain import PretrainDataModule
from bluelm_lightning.datamodules.prompts import PromptDataModule
from bluelm_lightning.datamodules.sft import SFTDataModule

__all__ = ["MultimodalDataModule", "PretrainDataModule", "PromptDataModule", "SFTDataModule", "SourceSpec"]
