"""The words of the progress line. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from bluelm_lightning.callbacks.meter import Reading


def step_line(
    step: int, total: int | None, values: Mapping[str, float], reading: Reading, world_size: int,
    lr: float | None, seconds_left: float | None,
) -> str:  # fmt: skip
    """``step 120/500  loss 1.234  3.1k tok/s  pad 2.1%  lr 1.0e-03  left 0:01:12``; what is unknown is left out."""
    parts = [f"step {step}/{total}" if total else f"step {step}"]
    parts += [f"{name} {value:.3f}" for name, value in values.items()]
    if reading.seconds > 0:
        parts += [f"{compact(reading.per_second(reading.tokens * world_size))} tok/s"]
        parts += [f"pad {reading.padding_share:.1%}"]
    parts += [f"lr {lr:.1e}"] if lr is not None else []
    parts += [f"left {duration(seconds_left)}"] if seconds_left is not None else []
    return "  ".join(parts)


def compact(number: float) -> str:
    """``512``, ``3.1k``, ``2.0M``."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """``0:01:12``."""
    return str(timedelta(seconds=round(seconds)))
