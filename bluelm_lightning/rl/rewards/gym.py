"""ReasoningGym: answers scored by the task's own rule in reasoning-gym."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score

KEY = "reasoning_gym"  # of Sample.meta: {"dataset": "chain_sum", "entry": {"question", "answer", "metadata"}}


class ReasoningGym(Reward):
    """The score in [0, 1] that reasoning-gym's data set gives to the answer; partial credit is its own.

    A sample names its data set and holds the entry in ``meta["reasoning_gym"]``.
    """

    verdict = True

    def __init__(self) -> None:
        self._datasets: dict[str, Any] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> Score:
        task = rollout.prompt.sample.meta.get(KEY)
        if task is None:
            return Score(None, f"the sample has no {KEY} entry")
        answer = rollout.generation.answer
        if answer is None:
            return Score(0.0)
        try:
            return Score(float(self._dataset(task["dataset"]).score_answer(answer, task["entry"])))
        except Exception as error:  # a scorer of somebody else's: one bad entry must not lose the others
            return Score(None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")

    def _dataset(self, name: str) -> Any:
        if name not in self._datasets:
            import reasoning_gym

            self._datasets[name] = reasoning_gym.create_dataset(name, size=1, seed=0)
        return self._datasets[name]
