"""ShardWriter: samples into ordinary webdataset tars, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from bluelm_lightning.data.image_bytes import sniff
from bluelm_lightning.data.records import parse_record, to_record
from bluelm_lightning.data.shard_index import index_path, make_index, save_index, write_json
from bluelm_lightning.data.shard_paths import MANIFEST, claim_folder
from bluelm_lightning.data.tar_write import end_archive, member
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample


class ShardWriter:
    """Writes ``PREFIX-000000.tar`` with its index, the next one, ..., and at the end ``manifest.json``::

        {"version": 1, "complete": true, "samples": 1000, "bytes": 4915200, "sources": {"easy_vqa": 1000}, "shards":
            [{"file": "shard-000000.tar", "samples": 1000, "bytes": 4915200, "sha256": ..., "sources": {...}}]}

    A tar appears under its name when it is whole. Until `close` the manifest says ``"complete": false``, so a folder
    whose writer died is never taken for a whole one. Keys are running numbers: unique and safe in any file system.

    Args:
        folder: made if missing.
        prefix: of the file names.
        samples_per_shard: a new shard begins after so many samples,
        max_bytes: or before it would grow over so many bytes.
        overwrite: remove the shards that a ShardWriter left in the folder; nothing else is ever removed.
        first_key: number of the first sample, where several writers share the work.

    Attributes:
        shards: what the manifest says of each finished shard.
        extra: more keys for the manifest.

    Raises:
        ConfigError: the folder holds shards and `overwrite` is off, or shards of others; a prefix that is no file name.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "shard",
        samples_per_shard: int = 1000,
        max_bytes: int = 1 << 29,
        overwrite: bool = False,
        first_key: int = 0,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", prefix) or samples_per_shard < 1 or max_bytes < 1:
            sizes = f"{samples_per_shard} samples, {max_bytes} bytes"
            raise ConfigError(f"prefix {prefix!r}, {sizes}: a prefix is of [A-Za-z0-9_-], sizes are at least 1")
        self.folder, self.prefix = Path(folder), prefix
        self.samples_per_shard, self.max_bytes = samples_per_shard, max_bytes
        self.extra: dict[str, Any] = {}
        self.shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._count, self._held, self._bytes, self._closed = first_key, 0, 0, False
        self._sources: Counter[str] = Counter()
        claim_folder(self.folder, prefix, overwrite)
        self._write_manifest(complete=False)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close() if kind is None else self._abort()

    def write(self, sample: Sample) -> None:
        """Adds a sample, in the form in which it will be read.

        Raises:
            DataError: the sample could not be read back (see `parse_record`), or its meta is not JSON.
        """
        if self._closed:
            raise ValueError("this ShardWriter is closed")
        where = sample.where or f"sample {sample.id}"
        sample = parse_record(to_record(sample), sample.images, where)
        record = _to_json(to_record(sample), where)
        found = {f"{number}.{sniff(data)}": data for number, data in enumerate(sample.images)} | {"json": record}
        size = sum(512 - len(data) // -512 * 512 for data in found.values())
        if self._file is not None and (self._held >= self.samples_per_shard or self._bytes + size > self.max_bytes):
            self._finish_shard()
        if self._file is None:
            self._begin_shard()
        assert self._file is not None
        for suffix in sorted(found):
            self._file.write(member(f"{self._count:09d}.{suffix}", found[suffix]))
        self._count, self._held, self._bytes = self._count + 1, self._held + 1, self._bytes + size
        self._sources[sample.source] += 1

    def close(self) -> None:
        """Finishes the last shard and the manifest. Raises OSError if the disk is full; the folder stays unfinished."""
        if self._closed:
            return
        if self._file is not None:
            self._finish_shard()
        self._write_manifest(complete=True)
        self._closed = True

    def _begin_shard(self) -> None:
        self._tar_path = self.folder / f"{self.prefix}-{len(self.shards):06d}.tar"
        self._temporary = self._tar_path.with_name(f".{self._tar_path.name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed in _finish_shard or _abort
        self._held, self._bytes, self._sources = 0, 0, Counter()

    def _finish_shard(self) -> None:
        assert self._file is not None
        end_archive(self._file)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        index = make_index(self._temporary)
        with open(self._temporary, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        save_index(index, index_path(self._tar_path))
        os.replace(self._temporary, self._tar_path)
        entry = {"file": self._tar_path.name, "samples": self._held, "bytes": index.num_bytes, "sha256": sha256}
        self.shards.append({**entry, "sources": dict(sorted(self._sources.items()))})

    def _abort(self) -> None:
        self._closed = True
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _write_manifest(self, complete: bool) -> None:
        total = {key: sum(shard[key] for shard in self.shards) for key in ("samples", "bytes")}
        sources = sum((Counter(shard["sources"]) for shard in self.shards), Counter[str]())
        head = {"version": 1, "complete": complete, **total, "sources": dict(sorted(sources.items()))}
        write_json(self.folder / MANIFEST, {**head, **self.extra, "shards": self.shards}, indent=1)


def _to_json(record: dict[str, Any], where: str) -> bytes:
    for fields in (record, *({key: value} for key, value in record.items())):  # one by one, to find which is wrong
        try:
            whole = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
            if fields is record:
                return whole
        except (TypeError, ValueError) as error:  # a lone surrogate is a ValueError
            if fields is not record:
                reason = f"cannot be written as JSON: {error}; drop or convert it"
                raise DataError(reason, f"{where}: {next(iter(fields))}") from error
    raise DataError("cannot be written as JSON", where)
