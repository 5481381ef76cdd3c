"""BuildShards: records -> indexed tar shards, ready for training."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.curation.step import Build
from bluelm_lightning.data.shard_index import index_path
from bluelm_lightning.data.shard_writer import ShardWriter
from bluelm_lightning.errors import ConfigError, DataError


class BuildShards(Build):
    """Writes tars with their indexes and a manifest, as `ShardWriter` does, several at a time.

    Args:
        samples_per_shard: of every shard but the last.
        shuffle_seed: records are put in one random order over all shards, so that sources are mixed in each; None keeps
            the order of collection.
        prefix: of the file names.
    """

    def __init__(self, samples_per_shard: int = 10_000, shuffle_seed: int | None = 0, prefix: str = "shard") -> None:
        if samples_per_shard < 1:
            raise ConfigError(f"{samples_per_shard} is less than 1", "samples_per_shard")
        if shuffle_seed is not None and shuffle_seed < 0:
            raise ConfigError(f"{shuffle_seed} is below 0", "shuffle_seed")
        if not prefix or "/" in prefix or prefix.startswith("."):
            raise ConfigError(f"{prefix!r} begins no file name; write letters", "prefix")
        self.samples_per_shard, self.shuffle_seed, self.prefix = samples_per_shard, shuffle_seed, prefix

    def plan(self, counts: Sequence[int]) -> list[Any]:
        total, size = sum(counts), self.samples_per_shard
        if not total:
            raise DataError("no record is left to write; see dropped.jsonl of the steps before")
        return [[number, start, min(total, start + size), total] for number, start in enumerate(range(0, total, size))]

    def write(self, unit: Any, rows: Any, folder: Path) -> dict[str, Any]:
        number, start, stop, total = unit
        here = folder / ".work" / f"shard-{number:06d}-{os.getpid()}"
        with ShardWriter(here, self.prefix, self.samples_per_shard, 1 << 60, overwrite=True, first_key=start) as writer:
            for place in range(start, stop):
                row = place if self.shuffle_seed is None else int(_order(self.shuffle_seed, total)[place])
                writer.write(rows[row].to_sample())
        [entry] = writer.shards
        tar = folder / f"{self.prefix}-{number:06d}.tar"
        for old, new in ((index_path(here / entry["file"]), index_path(tar)), (here / entry["file"], tar)):
            os.replace(old, new)
        shutil.rmtree(here)
        return {**entry, "file": tar.name}

    def finish(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        sources = sum((Counter(entry["sources"]) for entry in entries), Counter[str]())
        totals = {key: sum(entry[key] for entry in entries) for key in ("samples", "bytes")}
        return {**totals, "sources": dict(sorted(sources.items())), "shards": entries}


@lru_cache(maxsize=1)
def _order(seed: int, total: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(total)
