"""Log-probabilities of written tokens under the trainer's weights: the same distribution that they were drawn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bluelm_lightning.generation.budget import ThinkingTokens
from bluelm_lightning.generation.sampling import Sampling, log_distribution

_CHUNK_BYTES = 256 << 20  # float32 logits held at a time; below it nothing is recomputed


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    stops: Tensor,
    sampling: Sampling,
    never: Tensor,
    tokens: ThinkingTokens,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each token, without more than one chunk of logits at a time.

    Args:
        hidden: float[M, D], the states from which the tokens were drawn.
        weight: float[V, D], the output head.
        ids: int64[M], the tokens.
        stops: bool[M, 2], whether ``</s>`` and ``<think>`` were ruled out there.
        sampling: temperature and truncation, as in the rollout.
        never: bool[V], tokens that are never drawn.
        tokens: ids of the markers.

    Returns:
        float32[M] log-probabilities (differentiable) and float32[M] entropies in nats (detached).
    """
    rows = max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    parts = [slice(start, start + rows) for start in range(0, len(ids), rows)]
    fixed = (weight, sampling, never, tokens)
    if len(parts) <= 1 or not torch.is_grad_enabled():
        results = [_part(hidden[p], ids[p], stops[p], *fixed) for p in parts]
    else:
        results = [checkpoint(_part, hidden[p], ids[p], stops[p], *fixed, use_reentrant=False) for p in parts]  # type: ignore[misc]
    if not results:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    logprobs, entropies = zip(*results)
    return torch.cat(logprobs), torch.cat(entropies)


def _part(
    hidden: Tensor,
    ids: Tensor,
    stops: Tensor,
    weight: Tensor,
    sampling: Sampling,
    never: Tensor,
    tokens: ThinkingTokens,
) -> tuple[Tensor, Tensor]:
    blocked = never[None].repeat(len(ids), 1)
    blocked[:, tokens.end] |= stops[:, 0]
    blocked[:, tokens.think] |= stops[:, 1]
    blocked.scatter_(1, ids[:, None], False)  # a forced token may be one that could not be drawn; it carries no loss
    distribution = log_distribution(hidden @ weight.T, sampling, blocked, kept=ids)
    with torch.no_grad():
        probs = distribution.exp()
        entropy = -(probs * distribution.masked_fill(probs == 0, 0.0)).sum(-1)
    return distribution.gather(1, ids[:, None])[:, 0], entropy
