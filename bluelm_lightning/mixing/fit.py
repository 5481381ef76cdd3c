"""The law of one held-out loss against the shares of the mixture.

N mixtures, K sources. The form with the smallest leave-one-out error is taken, if it explains half of what there is:

- ``exponential``: ``loss = c + exp(a + sum_j t_j r_j)``, after "Data mixing laws" (Ye et al., 2024);
- ``log_shares``: ``loss = a + sum_j b_j z_j + q_j z_j^2`` with ``z_j = log(K r_j)``; our choice, for models so small
  that a source is not learnt at all until it has a share of its own;
- ``constant`` otherwise: shares do not matter, as far as these proxies can tell.

The others are linear once c is fixed, and fitted with a ridge penalty: a dozen proxies must do. c and the penalty are
chosen by the same leave-one-out error. It is the least of many, so noise alone makes it look a little better than the
constant's: hence the half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bluelm_lightning.errors import ConfigError

PENALTIES = (1e-3, 1e-2, 0.1, 1.0)
OFFSETS = {"exponential": (0.0, 0.3, 0.6, 0.8, 0.9, 0.97), "log_shares": (0.0,)}  # c as a share of the smallest loss
_EXPLAINED = 0.5  # of the variance, left out one by one
_MOST = 20.0  # of an exponent


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Args:
        form: one of the three.
        offset: c, in nats; 0 for the other two.
        penalty: of the ridge.
        weights: float[1 + F], the constant and the weight of each feature.
        error: root mean square of the leave-one-out errors, in nats.
        trivial: the same error of the constant: what shares explain is what lies below it.
    """

    form: str
    offset: float
    penalty: float
    weights: np.ndarray
    error: float
    trivial: float

    def predict(self, shares: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Losses in nats, float[N] of shares float[N, K]; float[N, D] with other weights float[1 + F, D]."""
        flat = features(self.form, shares) @ (self.weights if weights is None else weights)
        return _loss(self.form, flat, self.offset)

    def refit(self, shares: np.ndarray, losses: np.ndarray) -> Law:
        """The same form, offset and penalty on other proxies, such as a bootstrap's."""
        weights, _ = _ridge(self.form, self.offset, shares, np.maximum(losses, self.offset + 1e-6), self.penalty)
        return replace(self, weights=weights)


def fit_law(shares: np.ndarray, losses: np.ndarray) -> Law:
    """The law of a held-out loss.

    Args:
        shares: float[N, K].
        losses: float[N], in nats.

    Raises:
        ConfigError: fewer proxies than sources + 2, shapes that do not agree, or a loss that is not finite.
    """
    shares, losses = np.asarray(shares, float), np.asarray(losses, float)
    if shares.ndim != 2 or losses.shape != shares.shape[:1]:
        raise ConfigError(f"shares {shares.shape} and losses {losses.shape} do not agree", "fit")
    if not np.isfinite(losses).all():
        raise ConfigError(f"the losses {losses.tolist()} are not all finite; lower the learning rate of the proxies")
    if len(losses) < shares.shape[1] + 2:
        raise ConfigError(f"{len(losses)} proxies for {shares.shape[1]} sources; train {shares.shape[1] + 2} or more")
    constant, *others = _laws(shares, losses)
    best = min(others, key=lambda law: law.error)
    return best if best.error**2 < (1 - _EXPLAINED) * constant.error**2 else constant


def _laws(shares: np.ndarray, losses: np.ndarray) -> Iterator[Law]:
    trivial = _rms(losses - (losses.sum() - losses) / (len(losses) - 1))
    yield Law("constant", 0.0, 0.0, np.array([losses.mean()]), trivial, trivial)
    for form, parts in OFFSETS.items():
        for offset in (float(losses.min()) * part for part in parts):
            for penalty in PENALTIES:
                weights, left_out = _ridge(form, offset, shares, losses, penalty)
                error = _rms(_loss(form, left_out, offset) - losses)
                yield Law(form, offset, penalty, weights, error, trivial)


def features(form: str, shares: np.ndarray) -> np.ndarray:
    """float[N, 1 + F]: a column of ones and the features of a form."""
    ones, count = np.ones((len(shares), 1)), shares.shape[1]
    if form == "constant":
        return ones
    if form == "exponential":
        return np.hstack([ones, shares * count - 1])
    logs = np.log(np.maximum(shares, 1e-6) * count)
    return np.hstack([ones, logs, logs**2])


def _loss(form: str, flat: np.ndarray, offset: float) -> np.ndarray:
    return offset + np.exp(np.minimum(flat, _MOST)) if form == "exponential" else flat


def _ridge(
    form: str, offset: float, shares: np.ndarray, losses: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and what the others predict for each proxy; the constant carries no penalty.

    An error of the loss is an error of its logarithm divided by ``loss - c``: the exponential form is weighted so.
    """
    table, above = features(form, shares), losses - offset
    target = np.log(above) if form == "exponential" else losses
    trust = above**2 / np.mean(above**2) if form == "exponential" else np.ones_like(losses)
    cost = penalty * np.eye(table.shape[1])
    cost[0, 0] = 1e-9
    inverse = np.linalg.inv(table.T @ (trust[:, None] * table) + cost)
    weights = inverse @ table.T @ (trust * target)
    leverage = trust * np.einsum("nf,fg,ng->n", table, inverse, table)
    return weights, target - (target - table @ weights) / np.maximum(1 - leverage, 1e-6)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
