"""Scoring: is an answer right, and how sure is the share of right answers."""

from __future__ import annotations

import math

from bluelm_lightning.data.scoring import exact_match as exact_match


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike the normal one it stays inside [0, 1] at 0 and 100 %."""
    if not total:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
