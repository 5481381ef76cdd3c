"""Reward: the base that YAML finds rewards by."""

from __future__ import annotations

from collections.abc import Sequence

from bluelm_lightning.types import Rollout, Score


class Reward:
    """Scores rollouts, all of a batch at once: a reward may look at a whole group (``rollout.group``).

    A subclass takes its settings as typed ``__init__`` arguments and defines :meth:`score`. What it cannot score is
    ``Score(None, reason)``: missing, reported, and never counted as zero. ``verdict`` says that it judges whether the
    answer is right, from 0 to 1: disagreement between two such rewards is logged.
    """

    verdict = False

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in order. A failure may be raised: the router turns it into missing scores."""
        raise TypeError(f"{type(self).__name__} must define score(rollouts)")
