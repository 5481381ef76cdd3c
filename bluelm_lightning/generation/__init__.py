"""Turning a model into text."""

from bluelm_lightning.generation.budget import ThinkingBudget
from bluelm_lightning.generation.cache import KVCache
from bluelm_lightning.generation.engine import generate, roll_out
from bluelm_lightning.generation.logits_processor import BudgetLogitsProcessor
from bluelm_lightning.generation.sampling import Sampling

__all__ = ["BudgetLogitsProcessor", "KVCache", "Sampling", "ThinkingBudget", "generate", "roll_out"]
