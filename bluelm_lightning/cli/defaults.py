"""What every run gets unless its YAML says otherwise: callbacks, checkpoints, loggers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger

from bluelm_lightning.callbacks import BatchPreview, StopOnNaN, Throughput, TrainingProgress
from bluelm_lightning.cli.tracking import RunCSVLogger

# Added where the YAML names no callback of that class (a progress bar of any kind replaces ours).
DEFAULT_CALLBACKS: list[tuple[type[Callback], Callable[[], Callback]]] = [
    (ProgressBar, TrainingProgress),
    (Throughput, Throughput),
    (BatchPreview, BatchPreview),
    (StopOnNaN, StopOnNaN),
    (LearningRateMonitor, lambda: LearningRateMonitor(logging_interval="step")),
]


def default_callbacks(trainer: Any, checkpoints: Path, every_n_steps: int | None) -> list[Callback]:
    """Callbacks to add to those of the settings.

    Args:
        trainer: the trainer's settings, callbacks built.
        checkpoints: folder for checkpoints.
        every_n_steps: optimizer steps between two checkpoints; default: at the end of an epoch and of the run.
    """
    own = trainer.get("callbacks") or []
    own = own if isinstance(own, list) else [own]
    added = [make() for kind, make in DEFAULT_CALLBACKS if not any(isinstance(callback, kind) for callback in own)]
    if trainer.get("enable_progress_bar") is False:
        added = [callback for callback in added if not isinstance(callback, ProgressBar)]
    if trainer.get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in own):
        added.append(RunCheckpoint(checkpoints, every_n_steps))
    return added


class RunCheckpoint(ModelCheckpoint):
    """``last.ckpt`` and nothing that grows: every N optimizer steps, else after an epoch, and always at the end."""

    def __init__(self, dirpath: str | Path, every_n_steps: int | None = None) -> None:
        super().__init__(dirpath, "last", every_n_train_steps=every_n_steps, enable_version_counter=False)
        self._late = False

    @property
    def state_key(self) -> str:  # Lightning's holds N: a continued run may save more often
        return "RunCheckpoint"

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """The last batch of an epoch waits for its end: a resume from before it would go on in the same epoch, and
        count micro-batches of the next round to this one's step."""
        self._late = bool(trainer.is_last_batch)
        if not self._late:
            super().on_train_batch_end(trainer, pl_module, *args)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._late:
            self._late = False
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Steps after the last multiple of N would be lost otherwise."""
        if not trainer.fast_dev_run and self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")


def default_loggers(logger: Any, folder: Path, from_step: int) -> list[Logger]:
    """metrics.csv first, so that ``trainer.log_dir`` is the run folder; then the loggers of the settings."""
    own = [one for one in (logger if isinstance(logger, list) else [logger]) if isinstance(one, Logger)]
    if any(isinstance(one, CSVLogger) for one in own):
        return own
    return [RunCSVLogger(folder, from_step), *own]
