"""A teacher's likeliest tokens on disk: written once, read by any number of runs.

A folder holds ``part-000000.bin``, ``.json`` with the places of its documents, and ``manifest.json``. A document is
found by the hash of its token ids, labelled places and pictures, so the order of training, packing and epochs do not
matter. Until the manifest is there ``begun.json`` says what is being written, and a writer that was killed goes on
after the last part.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import IGNORE

_PART_BYTES = 1 << 26
FORMAT = 2  # 1: documents were told apart by their token ids alone


def document_key(ids: Tensor, labels: Tensor, tiles: Tensor) -> str:
    """What a document is found by: all that the teacher's rows depend on.

    Args:
        ids: int64[T].
        labels: int64[T]; which places are labelled counts, not with what. A cut trace differs in this only.
        tiles: uint8[N, 3, S, S], its pictures; N = 0 without.
    """
    found = hashlib.blake2b(ids.cpu().numpy().astype("<i8").tobytes(), digest_size=12)
    found.update((labels != IGNORE).cpu().numpy().tobytes())
    found.update(tiles.cpu().numpy().tobytes())
    return found.hexdigest()


class TeacherCacheWriter:
    """Writes a cache; use it in a ``with`` block. The manifest comes last: an unfinished folder is refused by readers.

    A part is on disk once :meth:`commit` says so, with where the caller stood then; a writer on the same folder goes on
    from there, and in the end the files are the same to the byte as without the kill.

    Args:
        folder: must not hold a finished cache, nor one begun with other settings.
        top_k: tokens a position.
        temperature: of the log-probabilities.
        vocab_size: of the teacher.
        settings: what else the content depends on; JSON.
        part_bytes: size from which a part is written.

    Attributes:
        seen: keys of the documents that it holds.
        reached: what the last :meth:`commit` that wrote a part was given; None at the beginning.

    Raises:
        ConfigError: the folder holds a cache already, or one that was begun with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        top_k: int,
        temperature: float,
        vocab_size: int,
        settings: dict[str, Any] | None = None,
        part_bytes: int = _PART_BYTES,
    ) -> None:
        self.folder, self.part_bytes = Path(folder), part_bytes
        self.told: dict[str, Any] = {"format": FORMAT, "top_k": top_k, "temperature": temperature}
        self.told |= {"vocab_size": vocab_size, **(settings or {})}
        self.told = json.loads(json.dumps(self.told))  # as it will be read
        refuse_finished(self.folder)
        self.parts = self.positions = 0
        self.seen: set[str] = set()
        self.reached: Any = None
        self._empty()
        self._go_on()

    def _go_on(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = self.folder / "begun.json"
        if begun.is_file():
            then = json.loads(begun.read_text())
            for key in sorted(then.keys() | self.told.keys()):
                if then.get(key) != self.told.get(key):
                    what = f"{key} was {_short(then.get(key))} and is {_short(self.told.get(key))}"
                    raise ConfigError(f"{self.folder} was begun otherwise: {what}; restore it, or remove OUT", "out")
        elif any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is not empty and holds no cache; give another folder", "out")
        write_json(begun, self.told)
        while (path := self.folder / f"part-{self.parts:06d}.json").is_file():
            told = json.loads(path.read_text())
            self.seen.update(told["documents"])
            self.positions += sum(count for _, count in told["documents"].values())
            self.parts, self.reached = self.parts + 1, told["reached"]

    def _empty(self) -> None:
        self._chunks: list[bytes] = []
        self._places: dict[str, list[int]] = {}
        self._size = 0

    def add(self, key: str, tokens: Tensor, logprobs: Tensor) -> None:
        """One document; nothing happens if it is there.

        Args:
            key: of the document, see :func:`document_key`.
            tokens: int64[M, K], the teacher's likeliest at its labelled positions.
            logprobs: float32[M, K].
        """
        if key in self.seen:
            return
        self.seen.add(key)
        data = tokens.cpu().numpy().astype("<u4").tobytes() + logprobs.cpu().numpy().astype("<f4").tobytes()
        self._places[key] = [self._size, len(tokens)]
        self._chunks.append(data)
        self._size += len(data)
        self.positions += len(tokens)

    def commit(self, reached: Any = None) -> None:
        """Write a part if it is large enough. ``reached``: where to go on from, JSON."""
        if self._size >= self.part_bytes:
            self._flush(reached)

    def _flush(self, reached: Any) -> None:
        path = self.folder / f"part-{self.parts:06d}"
        with open(path.with_suffix(".bin"), "wb") as file:
            file.writelines(self._chunks)
            file.flush()
            os.fsync(file.fileno())
        write_json(path.with_suffix(".json"), {"documents": self._places, "reached": reached})  # it counts from now on
        self.parts, self.reached = self.parts + 1, reached
        self._empty()

    def __enter__(self) -> TeacherCacheWriter:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            return
        if self._chunks:
            self._flush("end")
        write_json(
            self.folder / "manifest.json",
            {**self.told, "documents": len(self.seen), "positions": self.positions},
            indent=1,
        )
        (self.folder / "begun.json").unlink(missing_ok=True)


def refuse_finished(folder: str | Path) -> None:
    """Raises ConfigError: the folder holds a whole cache."""
    if (Path(folder) / "manifest.json").exists():
        raise ConfigError(f"{folder} holds a cache already; give another folder or remove it", "out")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class TeacherCache:
    """Reads a cache by document. Raises ConfigError: the folder holds no finished cache, or one of another format."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            raise ConfigError(f"{folder} holds no finished cache; write one with bluelm-cache", "model.cache")
        told = json.loads(manifest.read_text())
        if (written := told.get("format", 1)) != FORMAT:
            raise ConfigError(
                f"{folder} is of format {written}, read is {FORMAT}; write it again with bluelm-cache", "model.cache"
            )
        self.top_k, self.temperature = int(told["top_k"]), float(told["temperature"])
        self.vocab_size = int(told["vocab_size"])
        self._files: dict[str, tuple[Any, int, int]] = {}
        for path in sorted(self.folder.glob("part-*.json")):
            data = np.memmap(path.with_suffix(".bin"), dtype=np.uint8, mode="r")
            for key, (offset, count) in json.loads(path.read_text())["documents"].items():
                self._files[key] = (data, offset, count)
        if len(self._files) != told["documents"]:
            raise DataError(f"{len(self._files)} documents, the manifest says {told['documents']}", str(folder))

    def __len__(self) -> int:
        return len(self._files)

    def get(self, key: str, where: str) -> tuple[Tensor, Tensor]:
        """Tokens int64[M, K] and log-probabilities float32[M, K] of a document. Raises DataError naming ``where``."""
        found = self._files.get(key)
        if found is None:
            raise DataError(
                f"is not in the cache {self.folder}; write it with the same data, tokenizer and steps", where
            )
        data, offset, count = found
        size = count * self.top_k
        tokens = np.frombuffer(data[offset : offset + 4 * size].tobytes(), "<u4").reshape(count, self.top_k)
        start = offset + 4 * size
        values = np.frombuffer(data[start : start + 4 * size].tobytes(), "<f4").reshape(count, self.top_k)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(values.astype(np.float32))
