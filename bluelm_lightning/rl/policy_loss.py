"""Policy losses over flat tokens: GRPO and its kin are one function with different settings.

M tokens of R rollouts. ``mask`` is False at forced tokens: they carry no loss, no ratio, and no gradient at all.
Denominators are those of the whole optimizer step, so that micro-batches and processes sum to one big batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.kl import kl_estimate

_AGGREGATES = ("sequence", "token", "constant")
_CORRECTIONS = ("none", "token", "sequence")


class PolicyLoss:
    """Clipped policy-gradient loss.

    Args:
        ratio: importance ratio of each ``token``, or one of the whole ``sequence`` (the geometric mean, GSPO).
        clip_low: the ratio counts down to ``1 - clip_low``.
        clip_high: the ratio counts up to ``1 + clip_high``.
        aggregate: ``sequence`` = mean over a rollout's tokens, then over rollouts; ``token`` = mean over all tokens;
            ``constant`` = sum over tokens divided by ``max_tokens``, then mean over rollouts.
        max_tokens: for ``constant``.
        kl_coef: weight of the divergence from the reference; 0 = no reference is needed.
        kl_estimator: k1, k2 or k3.
        correction: importance correction where the engine that wrote the rollout differs from the trainer: weights
            ``exp(old - behaviour)``, of each ``token`` or of the ``sequence``, at most ``correction_cap``; or ``none``.
        correction_cap: see ``correction`` (truncated importance sampling, Yao et al. 2025).

    Raises:
        ConfigError: an unknown choice, a negative number, or ``constant`` without ``max_tokens``.
    """

    def __init__(
        self,
        ratio: str = "token",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        aggregate: str = "sequence",
        max_tokens: int | None = None,
        kl_coef: float = 0.0,
        kl_estimator: str = "k3",
        correction: str = "none",
        correction_cap: float = 2.0,
    ) -> None:
        for key, value, choices in (
            ("ratio", ratio, ("token", "sequence")),
            ("aggregate", aggregate, _AGGREGATES),
            ("correction", correction, _CORRECTIONS),
        ):
            if value not in choices:
                raise ConfigError(f"{value!r} is not one of {', '.join(choices)}", f"model.algorithm.{key}")
        for key, number in (("clip_low", clip_low), ("clip_high", clip_high), ("kl_coef", kl_coef)):
            if not number >= 0:
                raise ConfigError(f"{number} is negative; give 0 or more", f"model.algorithm.{key}")
        if aggregate == "constant" and not max_tokens:
            raise ConfigError("aggregate: constant divides by max_tokens; set it", "model.algorithm.max_tokens")
        self.ratio, self.clip_low, self.clip_high = ratio, clip_low, clip_high
        self.aggregate, self.max_tokens = aggregate, max_tokens
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator
        self.correction, self.correction_cap = correction, correction_cap

    def __call__(
        self,
        logprobs: Tensor,
        old: Tensor,
        advantages: Tensor,
        rollout: Tensor,
        mask: Tensor,
        num_sequences: int,
        num_tokens: int,
        behaviour: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch, and what to log.

        Args:
            logprobs: float[M], under the present weights.
            old: float[M], under the weights before the first update on these rollouts.
            advantages: float[M].
            rollout: int64[M], which rollout each token belongs to, 0 .. R-1.
            mask: bool[M], False = forced.
            num_sequences: rollouts of the whole optimizer step.
            num_tokens: unmasked tokens of the whole optimizer step.
            behaviour: float[M], log-probabilities of the engine when it wrote them.
            reference: float[M], under the reference weights; needed if ``kl_coef`` is not 0.
        """
        keep = mask.nonzero().flatten()  # forced tokens leave here: what follows cannot touch them
        logprobs, old, advantages, rollout = logprobs[keep], old[keep], advantages[keep], rollout[keep]
        lengths = torch.bincount(rollout, minlength=int(rollout.max()) + 1 if len(rollout) else 1)
        log_ratio = logprobs - old
        if self.ratio == "sequence":
            log_ratio = _mean_by_rollout(log_ratio, rollout, lengths)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        stats = self._clip_stats(ratio, advantages)
        if behaviour is not None:
            gap = old - behaviour[keep]
            stats |= {"gap_mean": _mean(gap.abs()), "gap_max": gap.abs().max() if len(gap) else gap.sum()}
            losses = losses * self._correction(gap, rollout, lengths)
        if self.kl_coef:
            assert reference is not None, "kl_coef needs the reference's log-probabilities"
            kl = kl_estimate(logprobs, reference[keep], self.kl_estimator)
            losses, stats["kl"] = losses + self.kl_coef * kl, _mean(kl.detach())
        return (losses * self._weights(rollout, lengths, num_sequences, num_tokens)).sum(), stats

    def _weights(self, rollout: Tensor, lengths: Tensor, num_sequences: int, num_tokens: int) -> Tensor:
        """float[M], the share of each token in the loss."""
        if self.aggregate == "token":
            return torch.full(rollout.shape, 1.0 / max(num_tokens, 1), device=rollout.device)
        divisor = lengths[rollout] if self.aggregate == "sequence" else torch.full_like(rollout, self.max_tokens or 1)
        return 1.0 / (divisor * max(num_sequences, 1))

    def _correction(self, gap: Tensor, rollout: Tensor, lengths: Tensor) -> Tensor | float:
        if self.correction == "none":
            return 1.0
        if self.correction == "sequence":
            gap = _mean_by_rollout(gap, rollout, lengths) * lengths[rollout]
        return gap.exp().clamp_max(self.correction_cap)

    def _clip_stats(self, ratio: Tensor, advantages: Tensor) -> dict[str, Tensor]:
        ratio = ratio.detach()
        low = (ratio < 1 - self.clip_low) & (advantages < 0)
        high = (ratio > 1 + self.clip_high) & (advantages > 0)
        return {"ratio": _mean(ratio), "clipped_low": _mean(low.float()), "clipped_high": _mean(high.float())}


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.sum()


def _mean_by_rollout(values: Tensor, rollout: Tensor, lengths: Tensor) -> Tensor:
    """float[M]: each token gets the mean of its rollout."""
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(0, rollout, values)
    return (sums / lengths.clamp_min(1))[rollout]


class GRPO(PolicyLoss):
    """Mean over a rollout's tokens, then over rollouts. Source: Shao et al. 2024, DeepSeekMath."""


class DrGRPO(PolicyLoss):
    """Sum over tokens by a constant: no bias to short right and long wrong answers. Source: Liu et al. 2025."""

    def __init__(self, max_tokens: int, **kwargs: Any) -> None:
        super().__init__(aggregate="constant", max_tokens=max_tokens, **kwargs)


class DAPO(PolicyLoss):
    """Mean over all tokens, and more room upwards. Source: Yu et al. 2025."""

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.28, **kwargs: Any) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, aggregate="token", **kwargs)


class GSPO(PolicyLoss):
    """One ratio a rollout, so the bounds are narrow. Source: Zheng et al. 2025."""

    def __init__(self, clip_low: float = 3e-4, clip_high: float = 4e-4, **kwargs: Any) -> None:
        super().__init__(ratio="sequence", clip_low=clip_low, clip_high=clip_high, **kwargs)
