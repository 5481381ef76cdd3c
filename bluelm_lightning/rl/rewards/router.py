"""RewardRouter: every prompt carries its reward spec; the right rewards are asked, and each is logged by name."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score, Scored

log = logging.getLogger(__name__)

SPEC = "rewards"  # key of Sample.meta: a list of names, or a mapping of names to weights


class RewardRouter:
    """Scores rollouts by the rewards that their prompts name.

    A reward is asked once a batch, with whole groups; different rewards run side by side. One that raises, or returns
    the wrong number of scores, no scores or a NaN, gives missing scores with the reason, or stops the run, as
    configured. The first reason of each reward is logged.

    Args:
        rewards: rewards by name.
        weights: weight of each in the total; default 1. A prompt's own mapping goes first.
        default: names for prompts without a spec; default: all.
        required: without one of these a rollout has no total and teaches nothing. Default: none; what is missing is
            left out of the sum and reported.
        on_error: ``missing`` or ``stop``.

    Raises:
        ConfigError: no reward, a name that is not one of ``rewards``, or an unknown ``on_error``.
    """

    def __init__(
        self,
        rewards: dict[str, Reward],
        weights: dict[str, float] | None = None,
        default: list[str] | None = None,
        required: list[str] | None = None,
        on_error: str = "missing",
    ) -> None:
        if not rewards:
            raise ConfigError("no reward; name at least one", "model.rewards.rewards")
        for key, names in (("weights", weights), ("default", default), ("required", required)):
            for name in names or ():
                if name not in rewards:
                    raise ConfigError(f"{name!r} is not one of {', '.join(rewards)}", f"model.rewards.{key}")
        if on_error not in ("missing", "stop"):
            raise ConfigError(f"{on_error!r} is not missing or stop", "model.rewards.on_error")
        self.rewards, self.weights, self.on_error = dict(rewards), dict(weights or {}), on_error
        self.verdicts = sorted(name for name, reward in self.rewards.items() if reward.verdict)
        self.default, self.required = list(rewards) if default is None else list(default), set(required or ())
        self._told: set[str] = set()  # rewards whose first missing score was logged

    def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
        """Rewards and total of each rollout, in order.

        Raises:
            DataError: a prompt names an unknown reward, or, with ``on_error: stop``, a reward fails.
        """
        specs = [self.spec(rollout) for rollout in rollouts]
        found: list[dict[str, Score]] = [{} for _ in rollouts]
        asked = {name: [i for i, spec in enumerate(specs) if name in spec] for name in self.rewards}
        asked = {name: places for name, places in asked.items() if places}
        with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
            jobs = {name: pool.submit(self._ask, name, [rollouts[i] for i in asked[name]]) for name in asked}
            for name, job in jobs.items():
                scores = job.result()
                self._tell(name, scores)
                for place, score in zip(asked[name], scores):
                    found[place][name] = score
        return [Scored(r, scores, self._total(scores, spec)) for r, scores, spec in zip(rollouts, found, specs)]

    def spec(self, rollout: Rollout) -> dict[str, float]:
        """Weights by name for this rollout's prompt."""
        sample = rollout.prompt.sample
        given = sample.meta.get(SPEC, self.default)
        weights = dict(given) if isinstance(given, dict) else {name: self.weights.get(name, 1.0) for name in given}
        for name in weights:
            if name not in self.rewards:
                known = ", ".join(self.rewards)
                raise DataError(
                    f"reward {name!r} is not one of {known}; add it or correct it", sample.where or sample.id
                )
        return weights

    def _ask(self, name: str, rollouts: list[Rollout]) -> list[Score]:
        try:
            scores = self.rewards[name].score(rollouts)
            faults = _faults(scores, len(rollouts))
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if self.on_error == "stop":
                raise DataError(f"failed: {reason}; correct it or set on_error: missing", f"reward {name}") from error
            return [Score(None, reason)] * len(rollouts)
        if self.on_error == "stop" and any(faults):
            first = next(filter(None, faults))
            raise DataError(f"{first}; correct it or set on_error: missing", f"reward {name}")
        return [Score(None, fault) if fault else scores[place] for place, fault in enumerate(faults)]

    def _tell(self, name: str, scores: list[Score]) -> None:
        """Log why a reward is missing, once: a reward that always fails would otherwise be a number in a log."""
        reason = next((score.reason for score in scores if score.value is None), None)
        if reason is not None and name not in self._told:
            self._told.add(name)
            log.warning("reward %s is missing: %s; reward/%s/missing counts such scores", name, reason, name)

    def _total(self, scores: dict[str, Score], weights: dict[str, float]) -> float | None:
        present = {name: score.value for name, score in scores.items() if score.value is not None}
        if not present or self.required & (set(scores) - set(present)):
            return None
        return sum(weights[name] * value for name, value in present.items())


def _faults(scores: Any, count: int) -> list[str]:
    """What is wrong with the score of each of ``count`` rollouts, "" for nothing."""
    if scores is None:
        return ["returned None, give a list of Score"] * count
    if len(scores) != count:
        return [f"returned {len(scores)} scores for {count} rollouts"] * count
    return [_fault(score) for score in scores]


def _fault(score: Any) -> str:
    if not isinstance(score, Score):
        return f"returned {type(score).__name__}, give Score(value)"
    return "" if score.value is None or math.isfinite(score.value) else f"returned {score.value}"
