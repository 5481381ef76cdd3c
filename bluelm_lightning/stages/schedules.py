"""Learning-rate schedules: pure functions of the step, as small classes that YAML can name.

A schedule returns a factor in [0, 1] that multiplies every group's learning rate. ``total_steps`` is the horizon, not
the length of the run: a schedule sized for a longer horizon than its stage leaves the rest of the decay to the next
stage, which continues it with ``start_step``: a number, or ``inherit`` to go on where the checkpoint of ``--init_from``
stands.
Source: BlueLM-2.5-3B, joint stage (a schedule for 12T tokens, 4T trained).
"""

from __future__ import annotations

import math
from typing import Literal

from bluelm_lightning.errors import ConfigError


class Schedule:
    """``value_at(step)``: the factor for optimizer step ``step`` (0 = the first)."""

    def __init__(self, warmup_steps: int = 0, start_step: int | Literal["inherit"] = 0) -> None:
        self.inherits = start_step == "inherit"
        start_step = 0 if start_step == "inherit" else start_step  # until :meth:`inherit` says more
        if warmup_steps < 0 or start_step < 0:
            given = f"warmup_steps={warmup_steps} and start_step={start_step}"
            raise ConfigError(f"{given} must not be negative; set both to 0 or more", "model.schedule")
        self.warmup_steps, self.start_step = warmup_steps, start_step

    def inherit(self, start_step: int) -> None:
        """Go on where an earlier stage stood; nothing changes unless ``start_step`` is ``inherit``."""
        if self.inherits:
            self.start_step = start_step

    def value_at(self, step: int) -> float:
        step += self.start_step
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        raise TypeError(f"{type(self).__name__} must define after_warmup(step)")


class Constant(Schedule):
    """Warm-up, then 1."""

    def after_warmup(self, step: int) -> float:
        return 1.0


class WarmupCosine(Schedule):
    """Linear warm-up, then a cosine from 1 to ``final_ratio`` at ``total_steps``, and ``final_ratio`` after that.

    Args:
        total_steps: where the cosine ends, warm-up included.
        warmup_steps: steps from 0 to 1.
        final_ratio: last factor.
        start_step: steps of the horizon that earlier stages have used; ``inherit`` takes it from their checkpoint.
    """

    def __init__(
        self,
        total_steps: int,
        warmup_steps: int = 0,
        final_ratio: float = 0.1,
        start_step: int | Literal["inherit"] = 0,
    ) -> None:
        super().__init__(warmup_steps, start_step)
        _check_horizon(total_steps, warmup_steps)
        _check_ratio(final_ratio)
        self.total_steps, self.final_ratio = total_steps, final_ratio

    def after_warmup(self, step: int) -> float:
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))


class WarmupStableDecay(Schedule):
    """Linear warm-up, a plateau at 1, then a decay over the last ``decay_steps``. Source: WSD, MiniCPM (2024).

    Args:
        total_steps: where the decay ends.
        decay_steps: length of the decay.
        warmup_steps: steps from 0 to 1.
        final_ratio: last factor.
        shape: ``linear`` or ``sqrt`` (1 - sqrt, falls faster at first).
        start_step: steps of the horizon that earlier stages have used; ``inherit`` takes it from their checkpoint.
    """

    def __init__(
        self,
        total_steps: int,
        decay_steps: int,
        warmup_steps: int = 0,
        final_ratio: float = 0.0,
        shape: str = "linear",
        start_step: int | Literal["inherit"] = 0,
    ) -> None:
        super().__init__(warmup_steps, start_step)
        if decay_steps < 1:
            raise ConfigError(f"{decay_steps} is below 1; for no decay choose Constant", "model.schedule.decay_steps")
        _check_horizon(total_steps, warmup_steps + decay_steps - 1)
        _check_ratio(final_ratio)
        if shape not in ("linear", "sqrt"):
            raise ConfigError(f"shape {shape!r} is not one of linear, sqrt", "model.schedule.shape")
        self.total_steps, self.decay_steps, self.final_ratio, self.shape = total_steps, decay_steps, final_ratio, shape

    def after_warmup(self, step: int) -> float:
        done = min(1.0, max(0.0, (step - (self.total_steps - self.decay_steps)) / self.decay_steps))
        left = 1 - (math.sqrt(done) if self.shape == "sqrt" else done)
        return self.final_ratio + (1 - self.final_ratio) * left


def _check_ratio(final_ratio: float) -> None:
    if not 0 <= final_ratio <= 1:
        raise ConfigError(f"{final_ratio} is not between 0 and 1", "model.schedule.final_ratio")


def _check_horizon(total_steps: int, used: int) -> None:
    if total_steps <= used:
        raise ConfigError(f"total_steps={total_steps} leaves no step after {used}; raise total_steps", "model.schedule")
