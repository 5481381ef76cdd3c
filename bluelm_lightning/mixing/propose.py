"""The mixture with the smallest predicted loss, and how sure that is.

Our choice: proxies are drawn anew with replacement, and the laws fitted to each draw. The proposal minimises the mean
of their predictions, so that no single lucky proxy decides; the minimum of each draw gives the intervals of the shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.mixing.design import exact
from bluelm_lightning.mixing.fit import Law, fit_law

_CANDIDATES, _ROUNDS = 4000, 3


@dataclass(frozen=True)
class Proposal:
    """A mixture, K sources, H held-out sets; intervals are 95 % over the draws.

    Args:
        shares: float[K].
        low, high: float[K], interval of each share.
        loss: predicted weighted mean of the held-out losses, with its interval; nats.
        gain: predicted loss of the uniform mixture minus that of this one, with its interval; nats.
        losses: float[H], predicted loss of each held-out set.
        laws: of each held-out set, fitted to all proxies.
    """

    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    loss: tuple[float, float, float]  # mean, low, high
    gain: tuple[float, float, float]
    losses: np.ndarray
    laws: list[Law]


def propose(
    shares: np.ndarray, losses: np.ndarray, weights: Sequence[float], resamples: int = 200, seed: int = 0
) -> Proposal:
    """The best mixture within the range that the proxies cover.

    Args:
        shares: float[N, K], of the proxies.
        losses: float[N, H], their held-out losses in nats.
        weights: float[H], of the held-out sets, on any scale.
        resamples: draws of proxies.
        seed: of draws and candidates.

    Raises:
        ConfigError: weights that are not positive, or as :func:`fit_law`.
    """
    shares, losses, goal = np.asarray(shares, float), np.asarray(losses, float), np.asarray(weights, float)
    if goal.shape != losses.shape[1:] or not (goal >= 0).all() or not goal.sum() > 0:
        raise ConfigError(f"weights {list(weights)} for {losses.shape[1]} held-out sets", "held_out")
    goal, rng = goal / goal.sum(), np.random.default_rng(seed)
    laws = [fit_law(shares, losses[:, number]) for number in range(losses.shape[1])]
    picked = rng.integers(len(shares), size=(resamples, len(shares)))
    drawn = [_refitted(law, shares, losses[:, number], picked) for number, law in enumerate(laws)]

    def predicted(rows: np.ndarray) -> np.ndarray:  # float[draws, rows]
        each = [weight * law.predict(rows, weights).T for weight, law, weights in zip(goal, laws, drawn)]
        return np.sum(each, axis=0)

    candidates = _inside(shares, rng.dirichlet(np.ones(shares.shape[1]), _CANDIDATES), shares)
    minima = candidates[predicted(candidates).argmin(axis=1)]
    best = exact(_narrowed(candidates, predicted, shares, rng))
    at_best, at_uniform = predicted(np.array([best, np.full_like(best, 1 / len(best))])).T
    low, high = np.quantile(minima, [0.025, 0.975], axis=0)
    each = np.array([law.predict(best[None])[0] for law in laws])
    return Proposal(best, low, high, _interval(at_best), _interval(at_uniform - at_best), each, laws)


def _refitted(law: Law, shares: np.ndarray, losses: np.ndarray, picked: np.ndarray) -> np.ndarray:
    """float[1 + F, draws], weights of the law for each draw of proxies int[draws, N]."""
    return np.stack([law.refit(shares[rows], losses[rows]).weights for rows in picked], axis=1)


def _inside(shares: np.ndarray, candidates: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Candidates whose every share lies within those of the proxies, and ``known``."""
    within = ((candidates >= shares.min(axis=0)) & (candidates <= shares.max(axis=0))).all(axis=1)
    return np.vstack([known, candidates[within]])


def _narrowed(candidates: np.ndarray, predicted, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The best candidate, after looking closer around it a few times."""
    best = candidates[predicted(candidates).mean(axis=0).argmin()]
    for number in range(_ROUNDS):
        around = rng.dirichlet(best * 50 * 4**number + 1e-3, _CANDIDATES // 4)
        rows = _inside(shares, around, best[None])
        best = rows[predicted(rows).mean(axis=0).argmin()]
    return best


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
