"""Turning a model into text."""

from bluelm_lightning.generation.engine import KVCache, generate

__all__ = ["KVCache", "generate"]
