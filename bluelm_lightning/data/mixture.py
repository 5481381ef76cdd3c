"""Mixture: which sample comes next, as a pure function of a small state that fits in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from bluelm_lightning.data.admission import Admission
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Ref


def shuffled_order(num: int, blocks: Sequence[int] | None, window: int, seed: tuple[int, ...]) -> np.ndarray:
    """An order of ``num`` samples: blocks (shards) in random order, samples shuffled within ``window`` blocks.

    Reading stays local to a few shards at a time, as a shuffle buffer would keep it, but the order is known in advance.
    Without ``blocks`` it is one uniform permutation.
    """
    rng = np.random.default_rng(seed)
    if not blocks or len(blocks) <= window:
        return rng.permutation(num)
    starts = np.concatenate([[0], np.cumsum(blocks)])
    order = rng.permutation(len(blocks))
    groups = [order[i : i + window] for i in range(0, len(order), window)]
    return np.concatenate(
        [rng.permutation(np.concatenate([np.arange(starts[b], starts[b + 1]) for b in group])) for group in groups]
    )


class Mixture:
    """An iterator of :class:`Ref` over several sources at given weights.

    Every draw adds each source's weight to its credit. Of the sources that are behind their share it takes the one
    that would first be a whole sample behind: after any number of draws each source's count is within one sample of its
    share (taking the one furthest behind misses it by 1.25 with three weights of 9 and nine of 1). The only state is
    credits, counts and rounds.

    Each of several processes has places of its own in the order of every source (see :meth:`share_out`), so no sample
    goes to two of them, also while shares move and one has drawn more than another.

    Args:
        lengths: samples of each source.
        weights: share of samples of each source, any positive scale; default: in proportion to ``lengths * epochs``.
        epochs: passes over each source in a round; ``None`` = without end. When every source is exhausted the round is
            over, and :meth:`renew` begins another, in which the orders go on to differ.
        block_sizes: samples of each shard of each source, or ``None``.
        seed: orders are drawn from (seed, source, epoch).
        shuffle: ``False`` reads each source in its own order.
        window: shards that are shuffled together.
        admission: which samples may still be seen; the others are passed over, and a source without any is left out.

    Raises:
        ConfigError: no source, an empty source, less than one sample in a round, or weights that are not positive.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float] | None = None,
        epochs: Sequence[float | None] | None = None,
        block_sizes: Sequence[Sequence[int] | None] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 16,
        admission: Admission | None = None,
    ) -> None:
        if not lengths or min(lengths) <= 0:
            raise ConfigError(f"every source needs at least one sample, sizes are {list(lengths)}", "data.sources")
        self.lengths = list(lengths)
        self.limits = [None if e is None else round(e * n) for e, n in zip(epochs or [None] * len(lengths), lengths)]
        if 0 in self.limits:
            raise ConfigError(f"{epochs} of {self.lengths} samples leave a source empty", "data.sources.epochs")
        self.weights = list(weights or [limit or n for limit, n in zip(self.limits, lengths)])
        if not all(np.isfinite(w) and w > 0 for w in self.weights):
            raise ConfigError(f"weights must be positive numbers, got {self.weights}", "data.sources.weight")
        self.block_sizes = list(block_sizes or [None] * len(lengths))
        self.seed, self.shuffle, self.window = seed, shuffle, window
        self.admission = admission or Admission([None] * len(lengths))
        self.rank, self.world_size = 0, 1
        self.credits: list[float] = []  # none: the round has not begun
        self.counts = [0] * len(lengths)
        self.rounds = 1
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Mixture:
        return self

    @property
    def endless(self) -> bool:
        return any(limit is None and most is None for limit, most in zip(self.limits, self.admission.most))

    @property
    def spent(self) -> bool:
        """Whether no sample may be seen again, in any round."""
        bounds = enumerate(zip(self.admission.most, self.lengths))
        return all(most is not None and self._place(i) >= most * n for i, (most, n) in bounds)

    def share_out(self, rank: int, world_size: int) -> None:
        """Be the part of process ``rank``: one in ``world_size`` places of the order of each source."""
        self.rank, self.world_size = rank, world_size

    def renew(self) -> None:
        """Begin another round."""
        self.rounds += 1
        self.credits = []

    def copy(self) -> Mixture:
        """One that goes on from here by itself; it shares the orders."""
        other = copy(self)
        other.load_state_dict(self.state_dict())
        other.weights, other._orders = list(self.weights), dict(self._orders)
        return other

    def set_weights(self, weights: Sequence[float]) -> None:
        """Shares from the next draw on, on any scale; 0 leaves a source out for a while.

        Raises:
            ConfigError: another number of weights, a negative one, or none above 0.
        """
        if len(weights) != len(self.lengths) or min(weights) < 0 or not 0 < sum(weights) < np.inf:
            raise ConfigError(f"{list(weights)} are no shares of {len(self.lengths)} sources", "data.sources.weight")
        self.weights = list(weights)

    def __next__(self) -> Ref:
        open_ = [i for i in range(len(self.lengths)) if self._find(i)]
        if not open_:
            raise StopIteration
        open_ = [i for i in open_ if self.weights[i] > 0] or open_  # a share may be 0 for a while
        if not self.credits:  # processes begin at different draws, or all would take the rare sources at once
            self.credits = [0.0] * len(self.lengths)
            for _ in range(self.rank):
                self._choose(open_)
        source = self._choose(open_)
        ref = self._next_of(source)
        self.counts[source] += 1
        return ref

    def _choose(self, open_: list[int]) -> int:
        total = sum(self.weights[i] for i in open_) or 1.0
        for i in open_:
            self.credits[i] += self.weights[i] / total
        behind = [i for i in open_ if self.credits[i] > 1e-9] or open_  # a source that ended may have left a debt
        source = min(behind, key=lambda i: ((1.0 - self.credits[i]) / (self.weights[i] or 1.0), i))
        self.credits[source] -= 1.0
        return source

    def _place(self, source: int) -> int:
        """Of the samples of a source, over all passes, the next that is this process's."""
        return self.counts[source] * self.world_size + (self.rank + source) % self.world_size

    def _next_of(self, source: int) -> Ref:
        epoch, place = divmod(self._place(source), self.lengths[source])
        return Ref(source, epoch, int(self._order(source, epoch)[place]))

    def _find(self, source: int) -> bool:
        """Pass over what may not be seen again; whether anything is left of the source in this round."""
        limit, most = self.limits[source], self.admission.most[source]
        end = float("inf") if limit is None else limit * self.rounds
        if most is not None:
            end = min(end, most * self.lengths[source])
            while self._place(source) < end and not self.admission.admits(self._next_of(source)):
                self.counts[source] += 1
        return self._place(source) < end

    def _order(self, source: int, epoch: int) -> np.ndarray:
        held = self._orders.get(source)
        if held is None or held[0] != epoch:
            num = self.lengths[source]
            if self.shuffle:
                order = shuffled_order(num, self.block_sizes[source], self.window, (self.seed, source, epoch))
            else:
                order = np.arange(num)
            held = self._orders[source] = (epoch, order)
        return held[1]

    def state_dict(self) -> dict[str, Any]:
        state = {"credits": list(self.credits), "counts": list(self.counts), "rounds": self.rounds}
        return state if self.world_size == 1 else {**state, "processes": self.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ConfigError: the state is of another number of processes, or of when they had no places of their own.

        One where nothing was drawn yet fits any number.
        """
        if any(state["counts"]) and state.get("processes", 1) != self.world_size:
            raise ConfigError(
                f"the order of samples was saved for {state.get('processes', 1)} processes that draw for themselves, "
                f"there are {self.world_size}; start a new run with --init_from",
                "data",
            )
        self.credits, self.counts, self.rounds = list(state["credits"]), list(state["counts"]), state["rounds"]
