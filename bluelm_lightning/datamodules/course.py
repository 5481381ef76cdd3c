"""How the batches of a run change with the step: their size and the shares of the sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bluelm_lightning.data.loader import PackingPlan
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import StepSchedule

ACCUMULATE = "accumulate_grad_batches"


@dataclass
class ScheduledCourse:
    """The schedules that callbacks have handed over; ``of`` makes a loader's course of them."""

    rows: StepSchedule | None = None
    shares: StepSchedule | None = None

    @property
    def moves(self) -> bool:
        return self.rows is not None or self.shares is not None

    def identity(self, trainer: Any) -> dict[str, Any]:
        """The batches depend on it, and where anything moves also on the micro-batches of a step."""
        moving = {"rows_schedule": self.rows, "shares_schedule": self.shares}
        found = {key: schedule.settings for key, schedule in moving.items() if schedule is not None}
        return found | ({ACCUMULATE: _micro_batches(trainer)} if found else {})

    def batches_of(self, trainer: Any, epochs: Sequence[float | None]) -> int:
        """Micro-batches of a step.

        Raises:
            ConfigError: steps may end early, at the end of a round: the number of a batch would not tell its step.
        """
        batches, limit = _micro_batches(trainer), getattr(trainer, "limit_train_batches", None)
        ends = isinstance(limit, int) and limit % batches
        if batches > 1 and (ends or all(one is not None for one in epochs)):
            what = f"limit_train_batches {limit}" if ends else "epochs of all sources"
            reason = f"{batches} with {what} would end a step early, which moving rows and shares cannot follow"
            raise ConfigError(f"{reason}; set it to 1, or let a source have no epochs", f"trainer.{ACCUMULATE}")
        return batches

    def of(
        self, plan: PackingPlan, names: list[str], batches: int, weigh: Callable[[list[float]], list[float]]
    ) -> _Course:
        """The course of a loader.

        Args:
            plan: what does not move.
            names: of the sources, in their order.
            batches: micro-batches of a step.
            weigh: weights of the schedule -> weights of samples.
        """
        return _Course(self, plan, names, batches, weigh([1.0] * len(names)))


def _micro_batches(trainer: Any) -> int:
    return trainer.accumulate_grad_batches if trainer else 1


@dataclass
class _Course:
    schedules: ScheduledCourse
    plan: PackingPlan
    names: list[str]
    batches: int
    unit: list[float]  # samples' weight of one unit of each source's weight

    def plan_at(self, cursor: int) -> PackingPlan:
        if self.schedules.rows is None:
            return self.plan
        row_tokens, rows = self.schedules.rows.value_at(cursor // self.batches)
        return replace(self.plan, row_tokens=row_tokens, rows=rows)

    def weights_at(self, cursor: int) -> list[float] | None:
        if self.schedules.shares is None:
            return None
        shares = self.schedules.shares.value_at(cursor // self.batches)
        return [shares[name] * unit for name, unit in zip(self.names, self.unit)]
