"""Policies: what the ledger knows of the sources -> their shares. Pure, small, and named in YAML.

Each source keeps at least ``floor`` of its prior share; the rest goes to the sources in proportion to
``prior x score``. So a policy only says what a score is. Where every score is 0 the prior holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import SharePolicy

PERIODS = 16  # whose losses a source's ledger keeps
_KEY = "trainer.callbacks.policy"


@dataclass(frozen=True)
class SourceFigures:
    """What is known of a source when shares are decided. Losses are means over labelled tokens, in nats.

    A period lies between two decisions.
    """

    samples: int
    prior: float  # share without resampling, 0 .. 1
    stage: int = 0  # runs that used the ledger before this one
    periods: Sequence[Sequence[float]] = ()  # (tokens in it, mean loss) of the last periods in which it was seen
    pass_rates: Any = ()  # float[K], of the prompts that were ever asked

    @property
    def loss(self) -> float | None:
        """Of the last period in which it was seen."""
        return self.periods[-1][1] if self.periods else None


Figures = dict[str, SourceFigures]


def tilt(figures: Figures, scores: dict[str, float | None], floor: float) -> dict[str, float]:
    """``floor * prior + (1 - floor) * prior * score / sum(prior * score)``, by source; the shares sum to 1.

    A source without a score takes the mean score of the others.
    """
    known = [score for score in scores.values() if score is not None]
    middle = sum(known) / len(known) if known else 0.0
    pulls = {name: f.prior * (middle if (s := scores[name]) is None else s) for name, f in figures.items()}
    total, priors = sum(pulls.values()), sum(f.prior for f in figures.values())
    if total <= 0:
        return {name: f.prior / priors for name, f in figures.items()}
    return {name: floor * f.prior / priors + (1 - floor) * pulls[name] / total for name, f in figures.items()}


class FixedSchedule(SharePolicy):
    """Shares that are written down: by the step, or raised from stage to stage.

    Args:
        points: weights by name of source, each point naming all of them.
        steps: optimizer step of each point, from 0 on; between them weights move linearly. Default: one point a
            stage, the last for every later one. A stage is a run that uses the ledger.

    Raises:
        ConfigError: no point, points that name different sources, or steps that do not begin at 0 and go up.
    """

    def __init__(self, points: list[dict[str, float]], steps: list[int] | None = None) -> None:
        if not points or any(set(point) != set(points[0]) for point in points):
            raise ConfigError("give at least one point, and let every point name the same sources", f"{_KEY}.points")
        rising = steps is None or (steps[:1] == [0] and all(b > a for a, b in pairwise(steps)))
        if not rising or (steps is not None and len(steps) != len(points)):
            raise ConfigError(f"{steps} for {len(points)} points; one step each, from 0 and up", f"{_KEY}.steps")
        self.points, self.steps = points, steps

    def shares(self, figures: Figures, step: int) -> dict[str, float]:
        """Raises ConfigError: the points name other sources than the data."""
        if set(self.points[0]) != set(figures):
            raise ConfigError(f"names {sorted(self.points[0])}, the data has {sorted(figures)}", f"{_KEY}.points")
        last = len(self.points) - 1
        if self.steps is None:
            return dict(self.points[min(next(iter(figures.values())).stage, last)])
        after = bisect_right(self.steps, step)
        old, new = self.points[after - 1], self.points[min(after, last)]
        start, end = self.steps[after - 1], self.steps[min(after, last)]
        done = (step - start) / (end - start) if end > start else 0.0
        return {name: (1 - done) * old[name] + done * new[name] for name in old}


class _Scored(SharePolicy):
    def __init__(self, floor: float) -> None:
        if not 0 <= floor <= 1:
            raise ConfigError(f"{floor} is not between 0 and 1", f"{_KEY}.floor")
        self.floor = floor

    def score(self, name: str, figures: SourceFigures) -> float | None:
        """Worth of one more token of the source, on any scale; ``None`` = not known yet."""
        raise TypeError(f"{type(self).__name__} must define score(name, figures)")

    def shares(self, figures: Figures, step: int) -> dict[str, float]:
        return tilt(figures, {name: self.score(name, known) for name, known in figures.items()}, self.floor)


class LearningProgress(_Scored):
    """More of what is being learnt: the score is by how many nats the loss falls with a token of the source.

    A slope over its own tokens, by least squares: by the step, a source would make more progress merely because it was
    drawn more.

    Args:
        floor: share of its prior that every source keeps; what seems learnt must still be looked at.
        periods: decisions that the slope goes back over. More are steadier, and later to see a change: a slope is a
            difference of noisy means, so let a period see many samples of each source.

    Raises:
        ConfigError: a floor outside 0 .. 1, or fewer than 2 periods or more than are kept.
    """

    def __init__(self, floor: float = 0.3, periods: int = 8) -> None:
        super().__init__(floor)
        if not 2 <= periods <= PERIODS:
            raise ConfigError(f"{periods} is not between 2 and {PERIODS}", f"{_KEY}.periods")
        self.periods = periods

    def score(self, name: str, figures: SourceFigures) -> float | None:
        seen = np.asarray(figures.periods[-self.periods :], dtype=np.float64)
        if len(seen) < 2:
            return None
        tokens, losses = seen.T
        middle = tokens.cumsum() - tokens / 2  # where in the source's tokens a period's mean loss stands
        far = middle - middle.mean()
        return max(-float(far @ losses) / float(far @ far), 0.0)


class ExcessLoss(_Scored):
    """More of what can still be learnt: the score is by how many nats the loss lies above a reference.

    Args:
        reference: loss of each source under a model that has learnt it, by name: from the ledger's page of an earlier
            run, or of a longer trained small model. A source that is not named has reference 0.
        floor: share of its prior that every source keeps.
        power: of the score; above 1 the furthest behind takes more.

    Source: the excess over a reference is DoReMi's (Xie et al. 2023); in proportion to it, not by exponentiated
    gradients, is our choice: it needs no learning rate and forgets.
    """

    def __init__(self, reference: dict[str, float], floor: float = 0.3, power: float = 1.0) -> None:
        super().__init__(floor)
        if power <= 0:
            raise ConfigError(f"{power} is not above 0", f"{_KEY}.power")
        self.reference, self.power = reference, power

    def score(self, name: str, figures: SourceFigures) -> float | None:
        if figures.loss is None:
            return None
        return max(figures.loss - self.reference.get(name, 0.0), 0.0) ** self.power

    def shares(self, figures: Figures, step: int) -> dict[str, float]:
        """Raises ConfigError: the reference names a source that the data has not."""
        wrong = sorted(set(self.reference) - set(figures))
        if wrong:
            raise ConfigError(f"{wrong[0]!r} is no source; there are {', '.join(figures)}", f"{_KEY}.reference")
        return super().shares(figures, step)


class PassRateBand(_Scored):
    """Reinforcement learning: more of the sources whose prompts are solved sometimes, and neither always nor never.

    The score is the share of a source's asked prompts with a pass rate in ``[low, high]``, by Laplace's rule
    ``(inside + 1) / (asked + 2)``: a source that was never asked counts as one half. Within a source, a
    ``PassRateLedger`` of the data module passes over single prompts.

    Args:
        low, high: the band.
        floor: share of its prior that every source keeps.
    """

    def __init__(self, low: float = 0.1, high: float = 0.9, floor: float = 0.3) -> None:
        super().__init__(floor)
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"low={low}, high={high}; give 0 <= low <= high <= 1", _KEY)
        self.low, self.high = low, high

    def score(self, name: str, figures: SourceFigures) -> float:
        rates = np.asarray(figures.pass_rates, dtype=np.float64)
        inside = int(((rates >= self.low) & (rates <= self.high)).sum())
        return (inside + 1) / (len(rates) + 2)


class InverseFrequency(SharePolicy):
    """Small sets are drawn more often than their size says: weights ``samples ** (1 - power)``.

    Args:
        power: 0 = in proportion to the samples, 1 = as much of each source.

    Raises:
        ConfigError: a power outside 0 .. 1.
    """

    def __init__(self, power: float = 0.5) -> None:
        if not 0 <= power <= 1:
            raise ConfigError(f"{power} is not between 0 and 1", f"{_KEY}.power")
        self.power = power

    def shares(self, figures: Figures, step: int) -> dict[str, float]:
        return {name: known.samples ** (1 - self.power) for name, known in figures.items()}
