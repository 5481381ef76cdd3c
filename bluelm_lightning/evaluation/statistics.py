"""Is a difference more than chance? Intervals of means over few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bluelm_lightning.errors import ConfigError

# 97.5 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom (any textbook); beyond, see `t_quantile`.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 0.1 %: from a table, beyond it from its expansion in 1 / freedom."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.960 + 2.372 / freedom + 2.823 / freedom**2


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ``values`` and its 95 % t interval: (mean, low, high).

    For two arms give their differences, one a seed: then what a seed does to both arms alike does not widen it.

    Raises:
        ConfigError: fewer than two values.
    """
    if len(values) < 2:
        raise ConfigError(f"{len(values)} value has no interval; give at least 2 seeds")
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = t_quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return mean, mean - half, mean + half
