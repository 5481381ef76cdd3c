"""Meter: what went through the model and how long training took. Only training counts, and waiting for its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from bluelm_lightning.types import IGNORE, PackedBatch


class Reading(NamedTuple):
    """What happened between two moments."""

    seconds: float
    steps: int  # optimizer steps
    tokens: int  # that are not padding
    labelled: int  # that carry loss
    capacity: int  # padding included
    tiles: int
    samples: int

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / self.capacity if self.capacity else 0.0

    def per_second(self, count: int) -> float:
        return count / self.seconds if self.seconds > 0 else 0.0


class Meter:
    """A stopwatch with counters. The clock runs from the start of a batch to the start of the next, unless stopped.

    Counts stay on the device until they are read: a step waits for nothing.

    Args:
        now: clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._in_step = now, False
        self._since: float | None = None  # None: stopped
        self.seconds, self.steps = 0.0, 0
        self._counted: Tensor | None = None  # int64[2] on the device: tokens, labelled
        self._known = [0, 0, 0]  # capacity, tiles, samples
        self._mark: tuple[float, int, Tensor] = (0.0, 0, torch.zeros(5, dtype=torch.int64))

    @property
    def running(self) -> bool:
        return self._since is not None

    def resume(self) -> None:
        if self._since is None:
            self._since = self._now()

    def begin_batch(self) -> None:
        self._in_step = True
        self.resume()

    def end_batch(self, batch: PackedBatch) -> None:
        self._bank()
        self._in_step = False
        counted = torch.stack([(batch.segments >= 0).sum(), (batch.labels != IGNORE).sum()])
        self._counted = counted if self._counted is None else self._counted + counted
        new = (batch.ids.numel(), len(batch.tiles), len(batch.sample_ids))
        self._known = [old + more for old, more in zip(self._known, new)]

    def stop(self) -> None:
        """Something other than training starts. Between two batches, what ran since the last one is not counted."""
        if self._in_step:
            self._bank()
        self._since = None

    def peek(self, reduce: Callable[[Tensor], Tensor] = lambda counts: counts) -> Reading:
        """Everything since the last :meth:`read`. ``reduce`` sums counts int64[5] over processes."""
        seconds, steps, counts = self._mark
        news = (self._totals(reduce) - counts).tolist()
        return Reading(self.seconds - seconds, self.steps - steps, *news)

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda counts: counts) -> Reading:
        """As :meth:`peek`, and start anew."""
        reading = self.peek(reduce)
        counts = self._mark[2] + torch.tensor(reading[2:])
        self._mark = (self.seconds, self.steps, counts)
        return reading

    def _totals(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        if self._counted is None:
            return self._mark[2]
        known = torch.tensor(self._known, device=self._counted.device)
        return reduce(torch.cat([self._counted, known])).cpu()

    def _bank(self) -> None:
        if self._since is not None:
            now = self._now()
            self.seconds, self._since = self.seconds + now - self._since, now


class Metered(L.Callback):
    """A callback with a meter, and a hook for each optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()
        self._step = 0

    def step_done(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After each optimizer step; ``trainer.global_step`` is its number, from 1."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.meter.begin_batch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.meter.end_batch(batch)
        if trainer.global_step == self._step:  # gradients still accumulate
            return
        self._step = trainer.global_step
        self.meter.steps += 1
        self.step_done(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.meter.stop()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.meter.stop()  # runs again from the next batch on: Lightning has no hook after the file is written


@contextmanager
def paused(trainer: L.Trainer) -> Iterator[None]:
    """Stop every meter of this run while something else than training goes on, such as writing samples."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    meters = [c.meter for c in callbacks if isinstance(c, Metered) and c.meter.running]
    for meter in meters:
        meter.stop()
    try:
        yield
    finally:
        for meter in meters:
            meter.resume()
