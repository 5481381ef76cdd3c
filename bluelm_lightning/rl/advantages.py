"""How much better a rollout is than expected: pure functions. R rollouts, G groups."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-4  # TRL's; keeps a group that hardly varies from shouting


def group_advantages(rewards: Tensor, groups: Tensor, scale: str = "std") -> Tensor:
    """Rewards relative to their group.

    Args:
        rewards: float[R]; NaN = missing: such a rollout gets 0 and is left out of its group's mean and deviation.
        groups: int64[R], 0 .. G-1.
        scale: ``std`` divides by the group's standard deviation (GRPO, Shao et al. 2024; unbiased, as TRL does),
            ``none`` does not (Dr. GRPO, Liu et al. 2025).

    Returns:
        float[R]. A group without variance gives exactly 0.
    """
    out = torch.zeros_like(rewards)
    for group in groups.unique():
        inside = (groups == group) & ~rewards.isnan()
        values = rewards[inside]
        if len(values) < 2 or bool((values == values[0]).all()):
            continue
        centred = values - values.mean()
        out[inside] = centred / (values.std() + _EPS) if scale == "std" else centred
    return out


def rloo_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Rewards float[R] against the mean of the other rollouts of their group (RLOO, Ahmadian et al. 2024). NaN: 0."""
    centred = group_advantages(rewards, groups, scale="none")
    present = (~rewards.isnan()).to(rewards.dtype)
    counts = torch.zeros(int(groups.max()) + 1, dtype=rewards.dtype).index_add_(0, groups, present)[groups]
    return centred * counts / (counts - 1).clamp_min(1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) over right-padded rows.

    Args:
        rewards: float[R, T], what each token earned.
        values: float[R, T], expected return before each token.
        mask: bool[R, T], tokens that exist; the value after the last is 0.
        gamma: discount.
        lam: 0 = one step, 1 = the whole return.

    Returns:
        Advantages and returns float[R, T], 0 at padding.
    """
    advantages = torch.zeros_like(rewards)
    following, running = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, 0.0)
        following = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def overlong_penalty(lengths: Tensor, max_tokens: int, cache_tokens: int) -> Tensor:
    """DAPO's soft overlong punishment: 0 up to ``max_tokens - cache_tokens``, then linear to -1 at ``max_tokens``."""
    return ((max_tokens - cache_tokens - lengths.float()) / cache_tokens).clamp(-1.0, 0.0)
