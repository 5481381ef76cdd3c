"""ShardSource: samples out of ordinary webdataset tars, any of them by number. `shard_writer` writes them.

A sample is ``KEY.json`` (see `records` for what may stand in it) and its pictures ``KEY.0.png``, ``KEY.1.jpg``, ...;
``KEY.jpg`` alone and captions in ``KEY.txt`` are understood too. Nothing in a tar is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import Counter, OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

from bluelm_lightning.data.records import parse_members
from bluelm_lightning.data.shard_index import open_index
from bluelm_lightning.data.shard_paths import find_shards, read_manifest
from bluelm_lightning.data.shard_writer import ShardWriter
from bluelm_lightning.data.tar_scan import members
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample

__all__ = ["ShardSource", "ShardWriter"]

MAX_OPEN = 32  # tars held open by one source in one process


class ShardSource:
    """Samples by number out of tar shards. Picklable, and safe in forked workers: reads carry their own position.

    Args:
        path: a folder, a tar, a glob, a brace list such as ``train-{000000..000009}.tar``, or a list of these.
        name: what the samples are called that name no source themselves; default: the manifest's only source, else the
            folder's name.

    Attributes:
        block_sizes: samples of each shard, for shuffling that stays local.
        fingerprint: changes when shards are added, removed, reordered or changed; moving the folder does not change it.

    Raises:
        ConfigError: nothing there, no shards in it, a URL, a compressed tar, or one shard twice.
        DataError: a damaged shard, an unfinished or incomplete folder, or no sample at all.
    """

    def __init__(self, path: str | Path | list[str] | list[Path], name: str | None = None) -> None:
        self.paths = find_shards(path)
        self._names = [f"{tar.parent.name}/{tar.name}" for tar in self.paths]
        indexes = [open_index(tar) for tar in self.paths]
        self.block_sizes = [len(index.spans) for index in indexes]
        self._starts = [0, *accumulate(self.block_sizes)]
        if not len(self):
            raise DataError(f"{len(self.paths)} shards without a single sample; choose others", str(path))
        self._spans = [index.spans for index in indexes]
        self._shards: list[dict[str, Any]] = [
            {"file": tar.name, "samples": len(index.spans), "bytes": index.num_bytes, "headers": index.headers}
            for tar, index in zip(self.paths, indexes)
        ]
        self._add_manifests()
        self.name = name or (len(self._sources) == 1 and next(iter(self._sources))) or self.paths[0].parent.name
        self._open: OrderedDict[int, _File] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError, naming shard, key and field, if this sample is damaged or is not what it should be."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.name}")
        index = int(index) % len(self)
        shard = bisect_right(self._starts, index) - 1
        local = index - self._starts[shard]
        key, found = members(self._read(shard, local), self._where(shard, local))
        return parse_members(key, found, f"{self._names[shard]}:{key}", self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    @property
    def fingerprint(self) -> str:
        lines = [repr(sorted(shard.items())) for shard in self._shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """``{name, fingerprint, samples, bytes, shards: [{file, samples, bytes, headers, sha256?}], sources?}``.

        ``sources`` counts samples by source; it is there when every shard's folder has a manifest that does.
        """
        total = {"samples": len(self), "bytes": sum(shard["bytes"] for shard in self._shards)}
        sources = {"sources": self._sources} if self._sources else {}
        return {"name": self.name, "fingerprint": self.fingerprint, **total, **sources, "shards": self._shards}

    def _add_manifests(self) -> None:
        """Takes each shard's sha256 and sources out of the manifest of its folder, where they fit."""
        sources = Counter[str]()
        held = {
            folder: {shard["file"]: shard for shard in read_manifest(folder).get("shards", ())}
            for folder in {tar.parent for tar in self.paths}
        }
        for tar, shard in zip(self.paths, self._shards):
            entry = held[tar.parent].get(tar.name, {})
            if entry.get("bytes") == shard["bytes"]:  # else written by others, or changed since
                shard["sha256"] = entry["sha256"]
                sources.update(entry.get("sources", {}))
        self._sources = dict(sources) if all("sha256" in shard for shard in self._shards) else {}

    def _where(self, shard: int, local: int) -> str:
        return f"{self._names[shard]}: sample {local}"

    def _read(self, shard: int, local: int) -> bytes:
        """One positioned read; a handle is this process's own or a forked copy, and its position is never used."""
        start, stop = (int(at) for at in self._spans[shard][local])
        where = self._where(shard, local)
        try:
            file = self._open.pop(shard, None) or _File(self.paths[shard])
            self._open[shard] = file
            blob = os.pread(file.descriptor, stop - start, start)
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(f"cannot be read: {error}; restore the shard or delete its index", where) from error
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        if len(blob) != stop - start:
            raise DataError(f"ends at byte {start + len(blob)}, inside this sample; copy it again", where)
        return blob


class _File:
    """A file that closes when nobody holds it: dropping it from the cache cannot pull it from under another thread."""

    descriptor = -1

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
