"""PromptLoader: draws prompts, hands them to the learner, and yields the experience it makes of them.

The learner decodes and scores between two optimizer steps, so every rollout is written by the weights that are then
updated; a learner that is ``ahead`` writes the next collection in a thread meanwhile, with weights one update old.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from typing import Any

from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.prompt_drawer import Asked, PromptDrawer
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Experience, Learner, Scored

_LENGTH = 1 << 30  # see __len__
_MOST_EMPTY = 20  # a cap on what dropping groups may cost


class PromptLoader:
    """An endless iterable of :class:`Experience`.

    Its state is the drawer's, the experience that is not yet used, and the distribution of budgets.

    Args:
        drawer: of prompts.
        learner: makes experience of prompts.
        budgets: how the thinking budget of a prompt that asks for thinking is drawn.
    """

    def __init__(self, drawer: PromptDrawer, learner: Learner, budgets: BudgetRange | None = None) -> None:
        self.drawer, self.learner, self.budgets = drawer, learner, budgets or BudgetRange()
        self.marked: dict[str, Any] = {"cursor": -1, "left": [], **self._place()}
        self._states: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self.collection = 0  # number of the one that the last batch came from

    def __len__(self) -> int:
        return _LENGTH  # without a length Lightning would fetch one batch ahead: every rollout one update stale

    def __iter__(self) -> Iterator[Experience]:
        self.drawer.load_state_dict(self.marked["drawer"])
        cursor = self.marked["cursor"]
        left = [Experience(**item) for item in self.marked["left"]]
        place = {key: self.marked[key] for key in ("drawer", "budgets")}
        collections = self._ahead() if self.learner.ahead else self._now()
        empty = 0
        while True:
            if not left:
                scored, place = next(collections)
                left = self.learner.learn(scored)
                empty = 0 if left else empty + 1  # every rollout of a group may have the same reward
                if empty >= _MOST_EMPTY:
                    why = _why(item for collection in self.learner.collected[-empty:] for item in collection)
                    raise DataError(f"{empty} collections in a row taught nothing: {why}")
                continue
            cursor += 1
            self.collection = place["drawer"].get("collections", 1) - 1
            first, left = replace(left[0], cursor=cursor), left[1:]
            self._states[cursor] = {"cursor": cursor, "left": [dict(vars(item)) for item in left], **place}
            while len(self._states) > 4:
                self._states.popitem(last=False)
            yield first

    def _place(self) -> dict[str, Any]:
        return {"drawer": self.drawer.state_dict(), "budgets": list(astuple(self.budgets))}

    def _now(self) -> Iterator[tuple[list[Scored], dict[str, Any]]]:
        """Collections and the place to go on from, each written when it is asked for."""
        while True:
            yield self._collect(self.budgets), self._place()

    def _ahead(self) -> Iterator[tuple[list[Scored], dict[str, Any]]]:
        """The same, the next one under way. It is drawn again after a resume: its weights are in the checkpoint."""
        with ThreadPoolExecutor(1) as pool:
            fresh = self.marked["cursor"] < 0
            job = pool.submit(self._collect, self.budgets if fresh else BudgetRange(*self.marked["budgets"]))
            while True:
                scored = job.result()
                self.learner.snapshot()
                place = self._place()
                job = pool.submit(self._collect, self.budgets)
                yield scored, place

    def _collect(self, budgets: BudgetRange) -> list[Scored]:
        """Scored rollouts, with as many groups that teach something as the refills allow."""
        count, refills = self.drawer.plan.prompts_per_step, self.drawer.plan.refills
        asked: list[Asked] = []
        scored: list[Scored] = []
        self.drawer.begin()
        for _ in range(1 + refills):
            missing = count - self.learner.informative(scored)
            new = self.drawer.draw(missing, budgets) if missing > 0 else []
            # with nothing to ask, too: another process may have, and all must call equally often
            scored += self.learner.write([item.prompt for item in new], first_group=len(asked))
            asked += new
        self.drawer.record(asked, self.learner.pass_rates(scored))
        return scored

    def mark(self, cursor: int) -> None:
        """The model was trained on batch ``cursor``: what is ``marked`` goes into a checkpoint."""
        self.marked = self._states[cursor]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.marked = state

    @property
    def skipped(self) -> int:
        """Prompts that could not be used."""
        return self.drawer.skipped


def _why(scored: Iterable[Scored]) -> str:
    """Why nothing was to be learnt. Rewards that fail leave nothing that differs, and then no other prompts help."""
    scores = [(name, score) for item in scored for name, score in item.rewards.items()]
    missing = [f"reward {name}: {score.reason}" for name, score in scores if score.value is None]
    if not missing:
        return "all rewards of every prompt are equal; ask prompts that are solved sometimes"
    many = f"{len(missing)} of {len(scores)} rewards are missing"
    return f"the totals of every prompt are equal or missing; {many}, the first for {missing[0]}; correct it"
