"""bluelm-lightning: train small multimodal language models that can think, not think, and think within a budget."""

__version__ = "0.1.0"
