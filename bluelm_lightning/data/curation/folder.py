"""The folder of one step: parts that appear whole, what was dropped, and a manifest with their hashes.

    03_LengthFilter/
        part-00000.jsonl   records, one a line; collection has the pictures beside them in part-00000.bin
        dropped.jsonl      {"id", "source", "reason", "detail", "match"} for each record left out
        manifest.json      {"complete": true, "in": 900, "out": 880, "dropped": {"too short": 20}, "parts": [...], ...}
        .work/             while the step is under way: what is done of each part; removed at the end

A part is done when its mark is in ``.work``; marks are written last. So a run that was killed goes on with the parts
that have none, and a folder with a manifest is never touched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bluelm_lightning.data.curation.record import Picture, Record
from bluelm_lightning.data.curation.step import Dropped
from bluelm_lightning.data.records import load_json
from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import ConfigError, DataError

MANIFEST = "manifest.json"


class Part(NamedTuple):
    """A file of records."""

    path: Path
    records: int


class StepFolder:
    """Paths and bookkeeping of a step's folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.work = path, path / ".work"

    def part(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.jsonl"

    def mark(self, number: int, stage: str = "part") -> Path:
        return self.work / f"{stage}-{number:05d}.json"

    def dropped(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.dropped.jsonl"

    def marks(self, count: int, stage: str = "part") -> dict[int, dict[str, Any]]:
        """Marks of the parts that are done, by number."""
        paths = {number: self.mark(number, stage) for number in range(count)}
        return {n: load_json(path.read_bytes(), str(path)) for n, path in paths.items() if path.is_file()}

    def manifest(self) -> dict[str, Any]:
        """Empty where there is none."""
        path = self.path / MANIFEST
        held = load_json(path.read_bytes(), str(path)) if path.is_file() else {}
        return held if isinstance(held, dict) else {}

    def key(self) -> str | None:
        """Fingerprint of the step that the folder was made by; None where it is none of ours."""
        started = self.work / "key"
        try:
            held = self.manifest().get("key")
        except DataError:  # ours appear whole
            held = None
        return held or (started.read_text() if started.is_file() else None)

    def wants_redo(self) -> bool:
        """Whether a finished step's files are cut or missing, or pictures could not be read and may be there by now."""
        held = self.manifest()
        sizes = {name: size for part in held.get("parts", ()) for name, size in part.get("bytes", {}).items()}
        whole = all((path := self.path / name).is_file() and path.stat().st_size == n for name, n in sizes.items())
        return not whole or "cannot be read" in held.get("dropped", {})

    def begin(self, key: str) -> bool:
        """Makes the folder ready. True if the step is done already.

        Raises:
            ConfigError: the folder was written with other settings, by other steps before it, or from other inputs; or
                by something else.
        """
        started, found = self.work / "key", self.key()
        if found is None and self.path.is_dir() and any(path.name != ".work" for path in self.path.iterdir()):
            reason = "holds files that no pipeline has written; move them, or name another folder"
            raise ConfigError(f"{self.path} {reason}", "output")
        if found not in (None, key):
            reason = "was made with other settings or inputs, of this step or of one before it"
            raise ConfigError(f"{self.path} {reason}; run with --redo, or name another folder", "output")
        if self.manifest().get("complete"):
            shutil.rmtree(self.work, ignore_errors=True)  # a kill between the manifest and this
            return True
        self.work.mkdir(parents=True, exist_ok=True)
        write_text(started, key)
        write_json(self.path / MANIFEST, {"version": 1, "complete": False, "key": key, "shards": []})
        return False

    def finish(self, head: dict[str, Any], marks: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        """Joins what was dropped, writes the manifest, removes what was needed on the way. Returns the manifest."""
        temporary = self.work / "dropped.jsonl"
        with open(temporary, "wb") as joined:
            for number in range(len(marks)):
                if self.dropped(number).is_file():
                    with open(self.dropped(number), "rb") as file:
                        shutil.copyfileobj(file, joined)
        os.replace(temporary, self.path / "dropped.jsonl")
        reasons = sum((Counter(mark["dropped"]) for mark in marks), Counter[str]())
        counts = {name: sum(mark[name] for mark in marks) for name in ("in", "out", "added")}
        parts = [mark["part"] for mark in marks if mark["part"]]
        dropped = dict(sorted(reasons.items()))
        manifest = {"version": 1, "complete": True, **head, **counts, "dropped": dropped, "parts": parts, **more}
        write_json(self.path / MANIFEST, manifest, indent=1)
        shutil.rmtree(self.work)
        return manifest


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PartWriter:
    """Writes one part, what was dropped of it, and at the end its mark.

    Args:
        folder: of the step.
        number: of the part.
        pictures: the part has pictures of its own.
    """

    def __init__(self, folder: StepFolder, number: int, pictures: bool = False) -> None:
        self.folder, self.number = folder, number
        self.counts, self.reasons = Counter[str](), Counter[str]()
        self._cpu = time.process_time()
        self._names = [folder.part(number), folder.dropped(number)]
        self._names += [folder.part(number).with_suffix(".bin")] * pictures
        self._files: list[BinaryIO] = []

    def __enter__(self) -> PartWriter:
        # in the work folder: what a killed process leaves goes with it
        temporary = [self.folder.work / f"{name.name}.{os.getpid()}.tmp" for name in self._names]
        self._files = [open(path, "wb", buffering=1 << 20) for path in temporary]  # noqa: SIM115
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for file in self._files:
            if kind is None:
                file.flush()
                os.fsync(file.fileno())
            file.close()
            if kind is not None:
                os.unlink(file.name)
        if kind is None:
            self._finish()

    def keep(self, line: bytes) -> None:
        """Writes one line of a record."""
        self._files[0].write(line)
        self.counts["out"] += 1

    def drop(self, id: str, source: str, why: Dropped) -> None:
        """Notes a record that is left out."""
        held = {"id": id, "source": source, "reason": why.reason, "detail": why.detail, "match": why.match}
        kept = {name: value for name, value in held.items() if value}
        self._files[1].write(json.dumps(kept, ensure_ascii=False).encode(errors="replace") + b"\n")
        self.reasons[why.reason] += 1

    def add_pictures(self, record: Record, images: list[bytes]) -> None:
        """Writes the pictures of a record into the part's own file."""
        name = self._names[2].relative_to(record.root).as_posix()
        for data in images:
            record.pictures.append(Picture(name, self._files[2].tell(), len(data)))
            self._files[2].write(data)

    def _finish(self) -> None:
        for file, name in zip(self._files, self._names):
            os.replace(file.name, name)
        entry: dict[str, Any] = {"file": self._names[0].name, "records": self.counts["out"]}
        entry |= {"sha256": hash_file(self._names[0])}
        entry["bytes"] = {name.name: name.stat().st_size for name in (self._names[0], *self._names[2:])}
        if len(self._names) > 2:
            entry["pictures_sha256"] = hash_file(self._names[2])
        out, dropped = self.counts["out"], sum(self.reasons.values())
        added = self.counts["added"]
        counts = {"in": out + dropped - added, "out": out, "added": added, "dropped": dict(self.reasons)}
        cpu = round(time.process_time() - self._cpu, 3)
        write_json(self.folder.mark(self.number), {**counts, "part": entry, "cpu": cpu})
