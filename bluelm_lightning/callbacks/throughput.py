"""Throughput: how fast the run learns from how much, one set of curves on every logging step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from bluelm_lightning.callbacks import names
from bluelm_lightning.callbacks.meter import Meter, Metered, Reading


class Throughput(Metered):
    """Logs useful tokens a second, padding, tiles, seconds a step, and totals that survive a resume.

    Time in validation, in checkpoints and in sample tables does not count; waiting for data does. Counts are sums over
    all processes. Values are means since the last logging step (``trainer.log_every_n_steps``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen = {"tokens": 0, "samples": 0}  # up to the last reading
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def step_done(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or trainer.global_step % every:
            return
        reading = self.meter.read(self._sum)
        self._seen = self._with(reading)
        # float64: float32 counts tokens only up to 16.7 million. One call: several would shift W&B's step.
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._curves(reading).items()}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def _curves(self, reading: Reading) -> dict[str, float]:
        return {
            names.TOKENS_PER_SECOND: reading.per_second(reading.tokens),
            names.LABELLED_PER_SECOND: reading.per_second(reading.labelled),
            names.TILES_PER_SECOND: reading.per_second(reading.tiles),
            names.STEP_SECONDS: reading.seconds / max(reading.steps, 1),
            names.PADDING_SHARE: reading.padding_share,
            names.TOKENS_SEEN: self._seen["tokens"],
            names.SAMPLES_SEEN: self._seen["samples"],
        }

    def _with(self, reading: Reading) -> dict[str, int]:
        return {key: count + getattr(reading, key) for key, count in self._seen.items()}

    # Every process saves at the same time, so the sum over processes may be taken here too.
    def state_dict(self) -> dict[str, Any]:
        return self._with(self.meter.peek(self._sum))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = {key: int(state_dict[key]) for key in self._seen}
        self.meter = Meter()

    def _sum(self, counts: Tensor) -> Tensor:
        """Over processes; those that share rows (context parallelism) have counted the same batch."""
        if self._trainer is None or self._trainer.world_size == 1:
            return counts
        strategy: Any = self._trainer.strategy
        return strategy.reduce(counts, reduce_op="sum") // getattr(strategy, "context_parallel", 1)
