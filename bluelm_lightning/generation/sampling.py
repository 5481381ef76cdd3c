"""The distribution that tokens are drawn from, as one function: the rollout draws from it and the trainer scores it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bluelm_lightning.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_new_tokens: limit of new tokens an answer.
        temperature: 0 = greedy.
        top_k: only the k likeliest tokens; 0 = all.
        top_p: only the likeliest tokens that together hold this share; 1 = all.

    Raises:
        ConfigError: a value out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for key, value, good in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 0),
            ("temperature", self.temperature, self.temperature >= 0),
            ("top_k", self.top_k, self.top_k >= 0),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
        ):
            if not good:
                raise ConfigError(f"{value} is out of range; see Sampling", f"sampling.{key}")


def log_distribution(logits: Tensor, sampling: Sampling, blocked: Tensor, kept: Tensor | None = None) -> Tensor:
    """Log-probabilities of the sampling distribution: after temperature, blocked tokens, top-k and top-p.

    Args:
        logits: float[R, V].
        sampling: a temperature of 0 counts as 1 here: greedy choice is the caller's.
        blocked: bool[V] or bool[R, V], tokens that are never drawn.
        kept: int64[R], a token of each row that the truncation must not drop: the one that was drawn. Without it a
            rounding difference at the edge of the nucleus would give it probability zero.

    Returns:
        float32[R, V], minus infinity where the probability is zero.
    """
    logits = logits.float().masked_fill(blocked, float("-inf"))
    logits = logits / (sampling.temperature or 1.0)
    if sampling.top_k or sampling.top_p < 1:
        with torch.no_grad():
            dropped = _dropped(logits, sampling)
            if kept is not None:
                dropped.scatter_(1, kept[:, None], False)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits.log_softmax(-1)


def _dropped(logits: Tensor, sampling: Sampling) -> Tensor:
    """bool[R, V]: what top-k and then top-p leave out. The token that crosses the share stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    out = torch.zeros_like(logits, dtype=torch.bool)
    if sampling.top_k:
        out[:, sampling.top_k :] = True
    if sampling.top_p < 1:
        probs = ordered.masked_fill(out, float("-inf")).softmax(-1)
        out |= probs.cumsum(-1) - probs >= sampling.top_p
    return torch.zeros_like(out).scatter_(1, order, out)


def draw(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens int64[R] by inverse transform: one number in [0, 1) a row, so that a row never depends on its neighbours.

    Args:
        log_probs: float32[R, V].
        uniforms: float64[R].
    """
    heights = log_probs.double().exp().cumsum(-1)
    return (heights <= uniforms[:, None] * heights[:, -1:]).sum(-1).clamp_max(log_probs.shape[1] - 1)


def uniforms(seed: int, copy: int, count: int) -> Tensor:
    """float64[count] in [0, 1): the random numbers of one answer, from its prompt's seed and its number alone."""
    mixed = (seed * 0x9E3779B97F4A7C15 + copy * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 63)
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))
