"""How the distribution of thinking budgets moves while a policy learns: by the step, or by how the policy does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from bluelm_lightning.errors import ConfigError

Range = tuple[int, int]  # low, high; thinking tokens


class ThinkingBudgetCurriculum(L.Callback):
    """Moves the budgets that prompts are drawn with from ``start`` to ``end``, linearly over ``total_steps``.

    A budget is uniform in ``[low, high]`` thinking tokens, and free with probability ``free_share``. All this is a
    function of the optimizer step alone, so a resumed run continues it exactly. Prompts are drawn in the main process,
    so a change holds from the next prompt on. Logged as ``budget/low``, ``budget/high`` and ``budget/free_share``, and
    drawn in ``budgets.png`` of the run folder.

    Args:
        start: (low, high) at step 0.
        end: (low, high) from ``total_steps`` on.
        total_steps: optimizer steps in which the range moves.
        free_share: share of prompts without a limit.

    Raises:
        ConfigError: an empty range, less than one step, or data without budgets.

    Source: explicit control of the thinking budget is the report's; the curriculum's shape is our choice.
    """

    def __init__(self, start: Range, end: Range, total_steps: int, free_share: float = 0.25) -> None:
        for name, (low, high) in (("start", start), ("end", end)):
            if not 0 <= low <= high:
                raise ConfigError(f"{(low, high)} is no range; give 0 <= low <= high", f"trainer.callbacks.{name}")
        if total_steps < 1 or not 0 <= free_share <= 1:
            raise ConfigError(f"total_steps={total_steps}, free_share={free_share}", "trainer.callbacks.total_steps")
        self.start, self.end, self.total_steps, self.free_share = start, end, total_steps, free_share
        self.history: list[list[int]] = []  # step, low, high

    def value_at(self, step: int) -> Range:
        """(low, high) in thinking tokens."""
        share = min(1.0, step / self.total_steps)
        low, high = (round(a + share * (b - a)) for a, b in zip(self.start, self.end))
        return low, high

    def present(self, trainer: L.Trainer) -> Range:
        """The range of the next prompts."""
        return self.value_at(trainer.global_step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "set_budgets"):
            raise ConfigError(f"{type(data).__name__} draws no budgets; use PromptDataModule", "trainer.callbacks")
        self._apply(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        low, high = self._apply(trainer)
        self.history.append([trainer.global_step, low, high])
        values = {"budget/low": float(low), "budget/high": float(high), "budget/free_share": self.free_share}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def _apply(self, trainer: L.Trainer) -> Range:
        low, high = self.present(trainer)
        trainer.datamodule.set_budgets(low, high, self.free_share)  # type: ignore[attr-defined]
        return low, high

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.history:
            path = Path(trainer.default_root_dir) / "budgets.png"
            try:
                draw_budgets(path, self.history)
            except ImportError:
                rank_zero_warn("budgets.png is not drawn: matplotlib is not installed (pip install matplotlib)")
                return
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("budget/range", [str(path)])

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [list(entry) for entry in state["history"]]


class AdaptiveBudgetCurriculum(ThinkingBudgetCurriculum):
    """Tightens the greatest budget while the policy copes, and loosens it where it does not.

    Every ``every_n_steps`` optimizer steps it looks at the mean pass rate of thinking prompts and at the share of
    rollouts that the length limit cut. With a pass rate of at least ``target`` and at most ``most_truncated`` cut, the
    range's upper end is multiplied by ``factor``; with a pass rate below ``target - slack`` it is divided by it. It
    stays between ``end`` and ``start``, and its lower end is that of ``end``. Each collection of rollouts counts once,
    whatever its micro-batches and updates; all processes decide by the means over all of them.

    Args:
        start: (low, high) at step 0, and the loosest.
        end: (low, high) that is the tightest.
        every_n_steps: steps between two decisions.
        target: pass rate that allows tightening.
        slack: how far below the target nothing happens.
        most_truncated: share of truncated rollouts that still allows tightening.
        factor: of one tightening, below 1.
        free_share: share of prompts without a limit.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        start: Range,
        end: Range,
        every_n_steps: int = 10,
        target: float = 0.6,
        slack: float = 0.1,
        most_truncated: float = 0.1,
        factor: float = 0.85,
        free_share: float = 0.25,
    ) -> None:
        super().__init__(start, end, every_n_steps, free_share)
        if not 0 < factor < 1 or not 0 <= slack <= target <= 1:
            raise ConfigError(f"factor={factor}, target={target}, slack={slack}", "trainer.callbacks.factor")
        self.every_n_steps, self.target, self.slack = every_n_steps, target, slack
        self.most_truncated, self.factor = most_truncated, factor
        self.high = float(start[1])
        self._seen: list[list[float]] = []  # pass rate, share truncated; means over the processes
        self._mine: list[list[float]] = []  # of this process, since the last step
        self._step = 0

    def next_high(self, high: float, passed: float, truncated: float) -> float:
        """The upper end after a decision: a pure function."""
        if passed >= self.target and truncated <= self.most_truncated:
            high *= self.factor
        elif passed < self.target - self.slack:
            high /= self.factor
        return min(float(self.start[1]), max(float(self.end[1]), high))

    def present(self, trainer: L.Trainer) -> Range:
        high = round(self.high)
        return min(self.end[0], high), high

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = batch.metrics  # not those of the trainer, which stay when a later batch has none
        if "mode/thinking_correct" in metrics:
            self._mine.append([metrics["mode/thinking_correct"], metrics["rollout/truncated"]])
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped:
            self._gather(trainer, pl_module)
        if stepped and trainer.global_step % self.every_n_steps == 0 and self._seen:
            passed, truncated = (sum(column) / len(column) for column in zip(*self._seen))
            self.high, self._seen = self.next_high(self.high, passed, truncated), []
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _gather(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Means over the processes; after every step, since a checkpoint keeps what the first process has seen."""
        rows = [[*row, 1.0] for row in self._mine] or [[0.0, 0.0, 0.0]]
        self._mine = []
        sums = torch.tensor(rows, dtype=torch.float64).sum(0)
        if trainer.world_size > 1:  # also where this one has nothing to say: the others would wait for it
            sums = trainer.strategy.reduce(sums.to(pl_module.device), reduce_op="sum")
        passed, truncated, count = sums.tolist()
        if count:
            self._seen.append([passed / count, truncated / count])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "high": self.high, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.high, self._seen = state["high"], [list(entry) for entry in state["seen"]]


def draw_budgets(path: Path, history: list[list[int]]) -> None:
    """A PNG of the range (low, high) over the steps."""
    from matplotlib.figure import Figure  # no display, no global state

    figure = Figure(figsize=(6.4, 3.2))
    axis: Any = figure.subplots()
    steps, lows, highs = zip(*history)
    axis.fill_between(steps, lows, highs, alpha=0.3, step="post")
    axis.plot(steps, highs, drawstyle="steps-post")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("thinking budget, tokens")
    axis.set_ylim(0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
