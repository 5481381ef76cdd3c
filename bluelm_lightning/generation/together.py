"""What processes that share a server do together: one of them works, the others wait, and all hear of its failure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any

from torch import distributed as dist

from bluelm_lightning.errors import DataError


def everyone(item: Any) -> list[Any]:
    """What each process gave, in the order of ranks; none goes on before all are here. Outside of processes: [item]."""
    if not (dist.is_available() and dist.is_initialized()):
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item, _group(dist.group.WORLD))
    return items


def once(key: str, work: Callable[[], object]) -> None:
    """``work()`` in the first of the processes that give the same key, while all wait; outside of processes, here.

    Every process must call it equally often. Different keys take turns: their servers may read the same folder.

    Raises:
        DataError: the work failed, in whichever process.
    """
    keys = everyone(key)
    if len(keys) == 1:
        work()
        return
    for turn in dict.fromkeys(keys):
        failed: Exception | None = None
        said: str | None = None
        if keys.index(turn) == dist.get_rank():
            try:
                work()
            except Exception as error:
                failed, said = error, f"{error}" if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        reasons = [reason for reason in everyone(said) if reason is not None]
        if reasons:
            raise DataError(reasons[0]) from failed


@lru_cache(maxsize=1)
def _group(world: Any) -> Any:
    """All processes over gloo, apart from the group of the training: rollouts may be written in a thread beside it.

    Its patience is a day: the slowest process may still be writing, and one that died is noticed at once.
    """
    return dist.new_group(timeout=timedelta(days=1), backend="gloo")
