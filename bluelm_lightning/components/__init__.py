"""Exchangeable parts of a model. Name one in YAML by ``class_path``, or subclass it in a package of your own."""

from bluelm_lightning.components.base import Component, Decoder, Projector, VisionEncoder
from bluelm_lightning.components.decoder import CausalDecoder
from bluelm_lightning.components.projector import LinearProjector, MLPProjector, ResamplerProjector
from bluelm_lightning.components.reward_model import DiscriminativeRewardModel
from bluelm_lightning.components.text import LanguageModel
from bluelm_lightning.components.value import ValueHead
from bluelm_lightning.components.vit import ViTEncoder
from bluelm_lightning.components.vlm import VisionLanguageModel

__all__ = [
    "CausalDecoder",
    "Component",
    "Decoder",
    "DiscriminativeRewardModel",
    "LanguageModel",
    "LinearProjector",
    "MLPProjector",
    "Projector",
    "ResamplerProjector",
    "ValueHead",
    "ViTEncoder",
    "VisionEncoder",
    "VisionLanguageModel",
]
