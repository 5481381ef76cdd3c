"""Where each sample of a tar shard begins and ends, so that any of them is one read away.

The index lies beside the tar as ``NAME.idx.json``::

    {"version": 1, "num_bytes": 10240, "probe": SHA256, "headers": SHA256, "spans": [[0, 5632], ...]}
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.tar_scan import Scan
from bluelm_lightning.errors import DataError

VERSION = 1


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one tar without reading it again."""

    num_bytes: int  # size of the tar
    probe: str  # sha256 of its first 4 and last 12 KiB: a cheap sign that the tar is still the one indexed
    headers: str  # sha256 of every member's name, size, place and time
    spans: np.ndarray  # int64[samples, 2]: first byte of the sample's headers, first byte after its data


def index_path(tar: Path) -> Path:
    """``train-000003.tar`` -> ``train-000003.idx.json``."""
    return tar.with_suffix(".idx.json")


def open_index(tar: Path) -> ShardIndex:
    """The index beside the tar if it still fits, else a new one, which is saved if the folder can be written.

    Raises:
        DataError: the tar cannot be read, or is damaged; see :class:`Scan`.
    """
    try:
        saved, (num_bytes, probe) = load_index(index_path(tar)), _probe(tar)
        if saved is not None and (saved.num_bytes, saved.probe) == (num_bytes, probe):
            return saved
        index = make_index(tar)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}; check the path and its permissions", str(tar)) from error
    with suppress(OSError):  # a read-only folder: the index lives in memory
        save_index(index, index_path(tar))
    return index


def make_index(tar: Path) -> ShardIndex:
    """Scans a tar. Raises DataError if it is damaged, OSError if it cannot be read."""
    num_bytes, probe = _probe(tar)
    scan = Scan(tar)
    return ShardIndex(num_bytes, probe, scan.digest, np.array([*scan.spans.values()], dtype=np.int64).reshape(-1, 2))


def load_index(path: Path) -> ShardIndex | None:
    """A saved index; None where there is none, or none that this code wrote."""
    try:
        held = json.loads(path.read_bytes())
        spans = np.array(held["spans"], dtype=np.int64).reshape(-1, 2)
        index = ShardIndex(int(held["num_bytes"]), held["probe"], held["headers"], spans)
        return index if held["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes an index, in one step."""
    write_json(path, {"version": VERSION, **vars(index), "spans": index.spans.tolist()})


def write_json(path: Path, value: dict[str, Any], indent: int | None = None) -> None:
    """Writes JSON under a temporary name in the same folder, then renames it: nobody ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _probe(tar: Path) -> tuple[int, str]:
    with open(tar, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(4096)
        file.seek(max(0, num_bytes - 12288))  # tar pads to 10,240 bytes: something added may leave the size alone
        return num_bytes, hashlib.sha256(head + file.read()).hexdigest()
