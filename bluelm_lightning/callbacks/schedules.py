"""What moves during a stage besides the learning rate: row length, shares of the sources, rotary scaling.

Each callback is a pure ``value_at(step)``. Rows and shares are handed to the data module, which asks for the value of
the batch that it makes: batches fetched ahead, loader workers and resumes do not shift it.
Source: BlueLM-2.5-3B, joint fast decay and long-context activation: the sequence grows from 4K to 32K, RoPE becomes
YaRN, the share of long data rises above 80 %, the global batch shrinks. By which steps is our choice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import lightning as L

from bluelm_lightning.callbacks import names
from bluelm_lightning.errors import ConfigError


@dataclass
class LengthPhase:
    """Size of the batches from a step on.

    Args:
        step: first optimizer step of the phase.
        row_tokens: tokens of a row.
        batch_rows: rows of a batch.
    """

    step: int
    row_tokens: int
    batch_rows: int = 1


class LengthSchedule(L.Callback):
    """Rows grow by phases, and the batch has fewer of them. Logged as ``data/row_tokens`` and ``data/batch_rows``.

    Args:
        phases: the first at step 0, in order. Rows may only grow: what waits to be packed must still fit.

    Raises:
        ConfigError: no phase at step 0, steps out of order, rows that shrink, or a size below 1.
    """

    def __init__(self, phases: list[LengthPhase]) -> None:
        _check_steps([phase.step for phase in phases], "phases")
        for before, after in pairwise(phases):
            if after.row_tokens < before.row_tokens:
                raise ConfigError(
                    f"rows shrink from {before.row_tokens} to {after.row_tokens} tokens; they may only grow",
                    "trainer.callbacks.phases",
                )
        if any(min(phase.row_tokens, phase.batch_rows) < 1 for phase in phases):
            raise ConfigError("row_tokens and batch_rows must be 1 or more", "trainer.callbacks.phases")
        self.phases = phases

    @property
    def settings(self) -> dict[str, Any]:
        return {"phases": [asdict(phase) for phase in self.phases]}

    def value_at(self, step: int) -> tuple[int, int]:
        """(row_tokens, batch_rows)."""
        phase = self.phases[bisect_right([p.step for p in self.phases], step) - 1]
        return phase.row_tokens, phase.batch_rows

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.datamodule.follow_rows(self)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        row_tokens, rows = self.value_at(max(trainer.global_step - 1, 0))
        values = {names.ROW_TOKENS: float(row_tokens), names.BATCH_ROWS: float(rows)}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)


@dataclass
class SharePoint:
    """Weights of the sources at a step.

    Args:
        step: optimizer step.
        weights: by name of source, on any scale; 0 = left out.
    """

    step: int
    weights: dict[str, float]


class ShareSchedule(L.Callback):
    """Shares of the sources move linearly from point to point. Logged as ``data/share/SOURCE``.

    Args:
        points: the first at step 0, in order; every point names every source. The data's ``weight`` is not used.

    Raises:
        ConfigError: no point at step 0, steps out of order, other names at another point or in the data, or weights
            that are negative or all 0.
    """

    def __init__(self, points: list[SharePoint]) -> None:
        _check_steps([point.step for point in points], "points")
        for point in points:
            if set(point.weights) != set(points[0].weights):
                raise ConfigError(f"step {point.step} names other sources than step 0", "trainer.callbacks.points")
            if min(point.weights.values(), default=0) < 0 or not sum(point.weights.values()) > 0:
                raise ConfigError(f"step {point.step} has a weight below 0, or none above", "trainer.callbacks.points")
        self.points = points

    @property
    def settings(self) -> dict[str, Any]:
        return {"points": [asdict(point) for point in self.points]}

    def value_at(self, step: int) -> dict[str, float]:
        """Share of each source; they sum to 1."""
        after = bisect_right([p.step for p in self.points], step)
        old, new = self.points[after - 1], self.points[min(after, len(self.points) - 1)]
        done = (step - old.step) / (new.step - old.step) if new.step > old.step else 0.0
        start, end = _shares(old), _shares(new)
        return {name: (1 - done) * start[name] + done * end[name] for name in start}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.datamodule.follow_shares(self)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        shares = self.value_at(max(trainer.global_step - 1, 0))
        values = {names.share(name): share for name, share in shares.items()}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)


class RopeSwitch(L.Callback):
    """The decoder's rotary scaling (its ``rope``, such as YaRN) begins at a step; before it, positions are plain.

    The settings of the model say what it is in the end, so a finished run is loaded as it is.

    Args:
        step: first optimizer step with the scaling.
    """

    def __init__(self, step: int) -> None:
        if step < 0:
            raise ConfigError(f"{step} is below 0", "trainer.callbacks.step")
        self.step = step

    def value_at(self, step: int) -> bool:
        """Whether positions are scaled."""
        return step >= self.step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.scaled: bool | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        scaled = self.value_at(trainer.global_step)
        if scaled != self.scaled:
            pl_module.vlm.decoder.scale_rope(scaled)
            self.scaled = scaled


def _shares(point: SharePoint) -> dict[str, float]:
    total = sum(point.weights.values())
    return {name: weight / total for name, weight in point.weights.items()}


def _check_steps(steps: Sequence[int], key: str) -> None:
    if not steps or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)):
        raise ConfigError(f"steps are {list(steps)}; begin at 0 and go up", f"trainer.callbacks.{key}")
