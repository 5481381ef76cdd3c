"""Admission: no sample is seen more often than its limit, over all stages that share a ledger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bluelm_lightning.types import Ref


class Admission:
    """Whether a sample may be seen in a pass over its source, as a function of the pass and of what came before.

    In pass number ``e`` (0, 1, ...) a sample has been seen ``before + e`` times, so nothing has to be counted: the
    answer is the same in every process, with any number of workers and after a resume.

    Args:
        limits: most times that a sample of each source is seen; ``None`` = no limit.
        before: int[N], how often earlier stages saw each sample of a source; ``None`` = never.

    Attributes:
        most: passes after which no sample of a source is admitted any more; ``None`` = never.
    """

    def __init__(self, limits: Sequence[int | None], before: Sequence[np.ndarray | None] = ()) -> None:
        self.limits, self.before = list(limits), list(before) or [None] * len(limits)
        pairs = zip(self.limits, self.before)
        self.most = [
            limit if limit is None or seen is None else max(limit - int(seen.min()), 0) for limit, seen in pairs
        ]

    def admits(self, ref: Ref) -> bool:
        limit, before = self.limits[ref.source], self.before[ref.source]
        return limit is None or ref.epoch + (0 if before is None else int(before[ref.index])) < limit
