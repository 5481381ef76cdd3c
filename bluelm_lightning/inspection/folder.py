"""ShardFolder: shards as they are, damaged ones among them. What cannot be read is named, the rest is there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from bluelm_lightning.data.shard_paths import find_shards
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample


class ShardFolder:
    """Samples by number, out of the shards that can be opened.

    Args:
        path: as :class:`ShardSource`: a folder, a tar, a glob or a brace list.

    Attributes:
        problems: a line for each shard that cannot be opened, and for a folder that is not whole.
        sources: samples by source as the manifests count them; empty where they do not.

    Raises:
        ConfigError: nothing there, as :class:`ShardSource`.
        DataError: no shard can be opened; the first reason.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.problems = str(path), list[str]()
        try:
            self._parts = [ShardSource(path)]
        except DataError as error:
            self._parts = list(self._one_by_one(path, error))
        self._starts = [0, *accumulate(len(part) for part in self._parts)]
        held = [part.manifest() for part in self._parts]
        self.num_shards = sum(len(part.block_sizes) for part in self._parts)
        self.num_bytes = sum(one["bytes"] for one in held)
        counted = all("sources" in one for one in held)
        self.sources = dict(sum((Counter(one["sources"]) for one in held), Counter[str]())) if counted else {}

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, indices: Iterable[int]) -> Iterator[Sample | DataError]:
        """The samples of these numbers, or why one cannot be read."""
        for index in indices:
            part = next(n for n, start in enumerate(self._starts[1:]) if index < start)
            try:
                yield self._parts[part][index - self._starts[part]]
            except DataError as error:
                yield error

    def _one_by_one(self, path: str | Path, first: DataError) -> Iterator[ShardSource]:
        """Those shards that open by themselves."""
        try:
            tars = find_shards(path)
        except DataError as error:  # an unfinished folder, or one that lacks shards of its manifest
            self.problems.append(str(error))
            tars = sorted(Path(os.path.expanduser(path)).glob("*.tar"))
        opened = False
        for tar in tars:
            try:
                part = ShardSource(tar)
            except DataError as error:
                self.problems.append(str(error))
            else:
                opened = True
                yield part
        if not opened:
            raise first
