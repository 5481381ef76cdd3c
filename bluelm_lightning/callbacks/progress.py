"""TrainingProgress: one line about the run, changing in place in a terminal, repeated every N steps in a log."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from bluelm_lightning.callbacks.live import LiveLines, is_terminal
from bluelm_lightning.callbacks.meter import Meter, Metered
from bluelm_lightning.callbacks.progress_text import duration, step_line


class TrainingProgress(Metered, ProgressBar):
    """Shows step, loss, useful tokens a second, padding share, learning rate and time left.

    In a terminal a bar at the bottom; elsewhere a line every N steps::

        step 120/500  loss 1.234  3.1k tok/s  pad 2.1%  lr 1.0e-03  left 0:01:12

    Values are read from the device only when a line is drawn. Tokens a second leave out padding, validation,
    checkpoints and sample tables; the time left includes them.

    Args:
        every_n_steps: steps between lines where stdout is no terminal; default: ``trainer.log_every_n_steps``.
        refresh_seconds: seconds between two drawings in a terminal.
        show: logged metrics to show; the validation line shows their ``val/`` counterparts. Default: ``train/loss``.
    """

    def __init__(
        self, every_n_steps: int | None = None, refresh_seconds: float = 0.5, show: list[str] | None = None
    ) -> None:
        super().__init__()
        self.every_n_steps, self.refresh_seconds = every_n_steps, refresh_seconds
        self.show = ["train/loss"] if show is None else show
        self.is_enabled = True
        self._live: LiveLines | None = None
        self._total: int | None = None
        self._rate: float | None = None
        self._first: tuple[float, int] | None = None  # moment and number of the first step done: it may have compiled
        self._drawn = self._validating_since = -math.inf

    def enable(self) -> None:
        self.is_enabled = True

    def disable(self) -> None:
        self.is_enabled = False

    # ------------------------------------------------------------------ training
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.meter, self._first = Meter(), None
        # The loader has no length: the total is trainer.max_steps, or what epochs of a sized loader make.
        total = trainer.estimated_stepping_batches
        self._total = int(total) if 0 < total < math.inf else None
        self._open()
        if self.is_enabled and self._live is None:
            end = self._total or "the end of the data"
            print(f"{type(pl_module).__name__}: from step {trainer.global_step} to {end}", flush=True)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._rate = max(float(group["lr"]) for group in optimizer.param_groups)  # afterwards it is the next step's

    def step_done(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now, step = time.monotonic(), trainer.global_step
        if self._first is None:
            self._first = now, step
        if not self.is_enabled or not self._due(trainer, step, now):
            return
        self._drawn = now
        line = self._line(trainer, step, now)
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.show(type(pl_module).__name__, line, step, self._total)

    def _due(self, trainer: L.Trainer, step: int, now: float) -> bool:
        assert self._first is not None
        if step in (self._first[1], self._total):  # the first shows that it runs
            return True
        if self._live is not None:
            return now - self._drawn >= self.refresh_seconds
        return step % (self.every_n_steps or trainer.log_every_n_steps or 1) == 0  # type: ignore[attr-defined]

    def _line(self, trainer: L.Trainer, step: int, now: float) -> str:
        return step_line(
            step, self._total, self._values(trainer, "train/"), self.meter.read(), trainer.world_size, self._rate,
            self._seconds_left(step, now),
        )  # fmt: skip

    def _seconds_left(self, step: int, now: float) -> float | None:
        assert self._first is not None
        moment, first = self._first
        if self._total is None or step == first:
            return None
        return (now - moment) / (step - first) * (self._total - step)

    def _values(self, trainer: L.Trainer, phase: str) -> dict[str, float]:
        found = trainer.callback_metrics
        names = [name.replace("train/", phase) for name in self.show]
        return {name.removeprefix(phase): float(found[name]) for name in names if name in found}

    # ------------------------------------------------------------------ validation
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validating_since = time.monotonic()
        self._open()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        now = time.monotonic()
        if self._live is None or trainer.sanity_checking or now - self._drawn < self.refresh_seconds:
            return
        self._drawn = now
        total = sum(trainer.num_val_batches)
        self._live.show("validation", f"batch {batch_idx + 1}", batch_idx + 1, None if math.isinf(total) else total)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.is_enabled or trainer.sanity_checking:
            return
        took = duration(time.monotonic() - self._validating_since)
        values = [f"{name} {value:.3f}" for name, value in self._values(trainer, "val/").items()]
        line = "  ".join([f"at step {trainer.global_step}", *values, f"took {took}"])
        if self._live is None:
            print(f"validation {line}", flush=True)
        else:
            self._live.show("validation", line, 1, 1)

    # ------------------------------------------------------------------ display
    def _open(self) -> None:
        if self.is_enabled and self._live is None and is_terminal() and not self.trainer.sanity_checking:
            self._live = LiveLines()
            self._live.start()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()
