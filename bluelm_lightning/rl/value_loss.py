"""The loss of a value head, over flat tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, num_tokens: int, clip: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error, the worse of the value and the value clipped to ``old +- clip`` (Schulman et al. 2017).

    Args:
        values: float[M], under the present weights.
        old: float[M], when the rollouts were scored.
        returns: float[M], what came of it.
        mask: bool[M], tokens that count.
        num_tokens: of the whole optimizer step.
        clip: 0 = no clipping.

    Returns:
        The loss, and ``mean``, ``clipped`` (share) and ``explained`` (1 - error variance / variance of the returns).
    """
    values, old, returns = values[mask], old[mask], returns[mask]
    errors = (values - returns).square()
    clipped = torch.zeros_like(errors, dtype=torch.bool)
    if clip:
        bounded = (old + (values - old).clamp(-clip, clip) - returns).square()
        clipped = bounded > errors
        errors = torch.maximum(errors, bounded)
    spread = returns.var(unbiased=False) if len(returns) else returns.sum()
    left = (returns - values.detach()).var(unbiased=False) if len(returns) else returns.sum()
    stats = {
        "mean": values.detach().mean() if len(values) else values.sum(),
        "clipped": clipped.float().mean() if len(values) else values.sum(),
        "explained": 1 - left / spread.clamp_min(1e-8),
    }
    return 0.5 * errors.sum() / max(num_tokens, 1), {name: value.detach() for name, value in stats.items()}
