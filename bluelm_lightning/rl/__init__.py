"""Reinforcement learning: rewards, advantages and losses as pure functions of the records in ``types``."""
