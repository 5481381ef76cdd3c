"""ReadAhead: worker processes read what will probably be asked for; the order itself is decided in the main process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bluelm_lightning.data.fetch import SampleFetcher, ShippedFetcher
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.types import Encoded, Ref, Skipped

CHUNK = 16  # samples a worker encodes at a time; part of the order, so it does not depend on the number of workers
_FACTOR = 2  # chunks that each worker has before it, as torch's loader does


class ReadAhead:
    """Reads references through worker processes.

    What the workers read is a forecast: a copy of the mixture runs ahead of the real one, at its present shares. When
    the shares change, the forecast begins again from where the mixture stands, without what was read already. So a
    change of shares holds from the next sample on, whatever the number of workers, and costs no reading twice.

    Args:
        fetcher: reads and encodes.
        mixture: the order; only copied.
        num_workers: processes; at least 1.
    """

    def __init__(self, fetcher: SampleFetcher, mixture: Mixture, num_workers: int) -> None:
        self.fetcher, self.mixture = fetcher, mixture
        self._forecast, self._weights = mixture.copy(), list(mixture.weights)
        self._ready: OrderedDict[Ref, Encoded | Skipped] = OrderedDict()
        self._underway: list[list[Ref]] = []
        self._most = 4 * _FACTOR * num_workers * CHUNK
        self._chunks = self._start(num_workers)

    def forecast(self) -> None:
        """Look again at the mixture's shares; to be called before the next references are drawn from it."""
        if self._weights != self.mixture.weights:
            self._forecast, self._weights = self.mixture.copy(), list(self.mixture.weights)

    def __call__(self, refs: list[Ref]) -> list[Encoded | Skipped]:
        """The samples of ``refs``, in order."""
        for _ in range(len(self._underway) + 1):  # a new forecast begins with them, behind what is under way
            if all(ref in self._ready for ref in refs) or not self._gather():
                break
        return [self._ready.pop(ref) if ref in self._ready else self.fetcher.fetch(ref) for ref in refs]

    def _gather(self) -> bool:
        """Wait for one more chunk; False when there is none."""
        items = next(self._chunks, None)
        if items is None:
            return False
        self._ready.update(zip(self._underway.pop(0), items))
        while len(self._ready) > self._most:  # a forecast that did not come true
            self._ready.popitem(last=False)
        return True

    def _keys(self) -> Iterator[list[Ref]]:
        while True:
            # range first: zip would otherwise draw one reference more and lose it
            drawn = [ref for _, ref in zip(range(CHUNK), self._forecast)]
            if not drawn:
                return
            known = {ref for chunk in self._underway for ref in chunk}
            mine = [ref for ref in drawn if ref not in known and ref not in self._ready]
            if mine:
                self._underway.append(mine)
                yield mine

    def _start(self, num_workers: int) -> Iterator[list[Encoded | Skipped]]:
        loader: Iterable[Any] = torch.utils.data.DataLoader(
            ShippedFetcher(**vars(self.fetcher)),  # type: ignore[arg-type]
            sampler=self._keys(),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=_FACTOR,
            collate_fn=_keep,
            generator=torch.Generator().manual_seed(0),  # leaves the global random state alone
        )
        read = iter(loader)  # now, not with the first request: the workers begin
        return ([ShippedFetcher.map(item, torch.as_tensor) for item in items] for items in read)


def _keep(items: Any) -> Any:
    return items
