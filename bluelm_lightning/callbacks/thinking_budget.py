"""ThinkingBudgetCurriculum: how the distribution of thinking budgets moves while a policy learns."""

from __future__ import annotations

from typing import Any

import lightning as L

from bluelm_lightning.errors import ConfigError


class ThinkingBudgetCurriculum(L.Callback):
    """Moves the budgets that prompts are drawn with from ``start`` to ``end``, linearly over ``total_steps``.

    A budget is uniform in ``[low, high]`` thinking tokens, and free with probability ``free_share``. All this is a
    function of the optimizer step alone, so a resumed run continues it exactly. Logged as ``budget/low``,
    ``budget/high`` and ``budget/free_share``.

    Args:
        start: (low, high) at step 0.
        end: (low, high) from ``total_steps`` on.
        total_steps: optimizer steps in which the range moves.
        free_share: share of prompts without a limit.

    Raises:
        ConfigError: an empty range, less than one step, or data without budgets.

    Source: explicit control of the thinking budget is the report's; the curriculum's shape is our choice.
    """

    def __init__(
        self, start: tuple[int, int], end: tuple[int, int], total_steps: int, free_share: float = 0.25
    ) -> None:
        for name, (low, high) in (("start", start), ("end", end)):
            if not 0 <= low <= high:
                raise ConfigError(f"{(low, high)} is no range; give 0 <= low <= high", f"trainer.callbacks.{name}")
        if total_steps < 1 or not 0 <= free_share <= 1:
            raise ConfigError(f"total_steps={total_steps}, free_share={free_share}", "trainer.callbacks.total_steps")
        self.start, self.end, self.total_steps, self.free_share = start, end, total_steps, free_share

    def value_at(self, step: int) -> tuple[int, int]:
        """(low, high) in thinking tokens."""
        share = min(1.0, step / self.total_steps)
        low, high = (round(a + share * (b - a)) for a, b in zip(self.start, self.end))
        return low, high

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "set_budgets"):
            raise ConfigError(f"{type(data).__name__} draws no budgets; use PromptDataModule", "trainer.callbacks")
        self._apply(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        low, high = self.value_at(trainer.global_step)
        values = {"budget/low": float(low), "budget/high": float(high), "budget/free_share": self.free_share}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        self._apply(trainer)

    def _apply(self, trainer: L.Trainer) -> None:
        low, high = self.value_at(trainer.global_step)
        trainer.datamodule.set_budgets(low, high, self.free_share)  # type: ignore[attr-defined]
