"""A teacher's likeliest tokens on disk: written once, read by any number of runs.

A folder holds ``part-000000.bin``, ``.json`` with the places of its documents, and ``manifest.json``. A document is
found by the hash of its token ids, so the order of training, packing and epochs do not matter.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluelm_lightning.errors import ConfigError, DataError

_PART_BYTES = 1 << 28


def document_key(ids: Tensor) -> str:
    """A document by its token ids int64[T]."""
    return hashlib.blake2b(ids.cpu().numpy().astype("<i8").tobytes(), digest_size=12).hexdigest()


class TeacherCacheWriter:
    """Writes a cache; use it in a ``with`` block. The manifest comes last: an unfinished folder is refused.

    Args:
        folder: must not hold a cache.
        top_k: tokens a position.
        temperature: of the log-probabilities.

    Raises:
        ConfigError: the folder holds a cache already.
    """

    def __init__(self, folder: str | Path, top_k: int, temperature: float) -> None:
        self.folder, self.top_k, self.temperature = Path(folder), top_k, temperature
        if (self.folder / "manifest.json").exists():
            raise ConfigError(f"{folder} holds a cache already; give another folder or remove it", "out")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parts = self.positions = 0
        self.seen: set[str] = set()
        self._chunks: list[bytes] = []
        self._places: dict[str, list[int]] = {}
        self._size = 0

    def add(self, ids: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """One document.

        Args:
            ids: int64[T], the document.
            tokens: int64[M, K], the teacher's likeliest at its labelled positions.
            logprobs: float32[M, K].
        """
        key = document_key(ids)
        if key in self.seen:
            return
        self.seen.add(key)
        data = tokens.cpu().numpy().astype("<u4").tobytes() + logprobs.cpu().numpy().astype("<f4").tobytes()
        self._places[key] = [self._size, len(tokens)]
        self._chunks.append(data)
        self._size += len(data)
        self.positions += len(tokens)
        if self._size >= _PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._chunks:
            return
        path = self.folder / f"part-{self.parts:06d}"
        path.with_suffix(".bin").write_bytes(b"".join(self._chunks))
        path.with_suffix(".json").write_text(json.dumps(self._places))
        self.parts, self._chunks, self._places, self._size = self.parts + 1, [], {}, 0

    def __enter__(self) -> TeacherCacheWriter:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            return
        self._flush()
        told = {"top_k": self.top_k, "temperature": self.temperature, "documents": len(self.seen)}
        (self.folder / "manifest.json").write_text(json.dumps({**told, "positions": self.positions}, indent=1))


class TeacherCache:
    """Reads a cache by document. Raises ConfigError: the folder holds no finished cache."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            raise ConfigError(f"{folder} holds no finished cache; write one first", "model.cache")
        told = json.loads(manifest.read_text())
        self.top_k, self.temperature = int(told["top_k"]), float(told["temperature"])
        self._files: dict[str, tuple[Any, int, int]] = {}
        for path in sorted(self.folder.glob("part-*.json")):
            data = np.memmap(path.with_suffix(".bin"), dtype=np.uint8, mode="r")
            for key, (offset, count) in json.loads(path.read_text()).items():
                self._files[key] = (data, offset, count)
        if len(self._files) != told["documents"]:
            raise DataError(f"{len(self._files)} documents, the manifest says {told['documents']}", str(folder))

    def __len__(self) -> int:
        return len(self._files)

    def get(self, ids: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """Tokens int64[M, K] and log-probabilities float32[M, K] of a document. Raises DataError naming ``where``."""
        found = self._files.get(document_key(ids))
        if found is None:
            raise DataError(f"is not in the cache {self.folder}; write it with the same data and tokenizer", where)
        data, offset, count = found
        size = count * self.top_k
        tokens = np.frombuffer(data[offset : offset + 4 * size].tobytes(), "<u4").reshape(count, self.top_k)
        start = offset + 4 * size
        values = np.frombuffer(data[start : start + 4 * size].tobytes(), "<f4").reshape(count, self.top_k)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(values.astype(np.float32))
