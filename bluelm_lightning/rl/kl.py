"""Estimators of the Kullback-Leibler divergence from a reference, from the log-probabilities of drawn tokens alone."""

from __future__ import annotations

import torch
from torch import Tensor

from bluelm_lightning.errors import ConfigError

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: str = "k3") -> Tensor:
    """KL(policy || reference) a token, from tokens drawn by the policy.

    ``k1`` = log p - log q: unbiased, may be negative. ``k2`` = (log p - log q)^2 / 2: biased, its gradient is right.
    ``k3`` = q/p - 1 - log(q/p): unbiased and never negative. Source: Schulman 2020, "Approximating KL divergence".

    Args:
        logprobs: float[M], the policy's.
        reference: float[M], the reference's.

    Raises:
        ConfigError: unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"{estimator!r} is not one of {', '.join(ESTIMATORS)}", "kl_estimator")
    log_ratio = reference - logprobs
    if estimator == "k1":
        return -log_ratio
    return log_ratio.square() / 2 if estimator == "k2" else torch.expm1(log_ratio) - log_ratio
