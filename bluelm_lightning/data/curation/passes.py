"""What is done to one part, in whichever process: collect it, filter it, sketch it, apply a decision to it.

Each function here is a task of an `Engine`: it writes files, its mark last, and returns ``{"records": ...}`` for the
bar.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.convert import without_details
from bluelm_lightning.data.curation.folder import Part, PartWriter, StepFolder
from bluelm_lightning.data.curation.record import Picture, Record, close_files, from_line, read_bytes, read_lines
from bluelm_lightning.data.curation.step import Build, Collect, Dropped, Filter, Global
from bluelm_lightning.data.records import load_json, to_record
from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import ConfigError, DataError


@dataclass(frozen=True)
class Job:
    """A step and its folder, as they travel to a process."""

    step: Any
    folder: Path  # of the step
    root: Path  # of the pipeline

    @property
    def files(self) -> StepFolder:
        return StepFolder(self.folder)


class Rows:
    """Records by their number through all parts, read from disk one by one."""

    def __init__(self, parts: Sequence[Part], root: Path) -> None:
        self.parts, self.root = list(parts), root
        self._starts = [0, *accumulate(part.records for part in parts)]
        self._bounds: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Record:
        number = bisect_right(self._starts, row) - 1
        bounds = self._bounds.get(number)
        if bounds is None:
            held = np.memmap(self.parts[number].path, np.uint8, "r")
            bounds = self._bounds[number] = np.concatenate([[0], np.flatnonzero(held == ord("\n")) + 1])
        start, stop = (int(at) for at in bounds[row - self._starts[number] :][:2])
        path = str(self.parts[number].path)
        return from_line(read_bytes(path, Picture(path, start, stop - start)), self.root)


class Sketches:
    """Arrays that `Global.sketch` returned for each part, read when asked for."""

    def __init__(self, files: StepFolder, counts: Sequence[int]) -> None:
        self._files, self.counts = files, list(counts)
        self.starts = [0, *accumulate(counts)]

    def parts(self, name: str) -> list[np.ndarray]:
        """The array of each part, memory-mapped."""
        return [np.load(_sketch_file(self._files, n, name), mmap_mode="r") for n in range(len(self.counts))]

    def column(self, name: str) -> np.ndarray:
        """The arrays of all parts, one after the other, in memory."""
        return np.concatenate(self.parts(name)) if self.counts else np.zeros(0)

    def rows(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """Numbers int64[M] -> those rows of the arrays of all parts, read from disk when they are asked for."""
        parts = self.parts(name)
        ends = np.cumsum([len(part) for part in parts])

        def take(numbers: np.ndarray) -> np.ndarray:
            out = np.empty((len(numbers), *parts[0].shape[1:]), parts[0].dtype)
            places = np.searchsorted(ends, numbers, "right")
            for place in np.unique(places).tolist():
                mine = places == place
                out[mine] = parts[place][numbers[mine] - (ends[place] - len(parts[place]))]
            return out

        return take


def collect_part(job: Job, unit: Any, number: int) -> dict[str, Any]:
    """A unit of input -> a part with its pictures."""
    step: Collect = job.step
    samples = step.read(unit)
    with PartWriter(job.files, number, pictures=True) as writer:
        while True:
            try:
                sample = next(samples, None)
                if sample is None:
                    break
                record = Record(to_record(sample), [], job.root)
                line = record.to_line()  # before its pictures are written: it may be no JSON
                if sample.images:
                    writer.add_pictures(record, sample.images)
                    line = record.to_line()
                writer.keep(line)
            except DataError as error:
                why = Dropped(without_details(error.reason), error.reason)
                writer.drop(error.where, getattr(step, "source", None) or "", why)
    return {"records": writer.counts["out"] + sum(writer.reasons.values())}


def filter_part(job: Job, part: Part, number: int) -> dict[str, Any]:
    """A part -> what the filter keeps of it."""
    step = _ready(job)
    with PartWriter(job.files, number) as writer:
        for line, record in read_lines(part.path, job.root):
            try:
                became = step.process(record)
            except (ConfigError, DataError):  # these say where
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                raise _failed(job, line, f"{reason}; correct {type(step).__name__}.process") from error
            if became is record:
                writer.keep(line)
            elif isinstance(became, Dropped):
                writer.drop(record.id, record.source, became)
            elif isinstance(became, Record):
                writer.keep(became.to_line())
            else:
                got = None if became is None else type(became).__name__
                raise _failed(job, line, f"returned {got}; return the record or Dropped(...)")
    return {"records": part.records}


def _failed(job: Job, line: bytes, reason: str) -> DataError:
    """Read from its line again: the step may have changed the record before it failed."""
    return DataError(reason, f"{job.folder.name}: record {from_line(line, job.root).id}")


def _ready(job: Job) -> Filter:
    """The step with what `Filter.prepare` wrote open, kept for the next part of the same step."""
    key = f"{job.folder} {sorted(job.step.settings().items())!r}"
    if key not in _opened:
        job.step.open(job.files.work)
        _opened.clear()
        _opened[key] = job.step
    return _opened[key]


_opened: dict[str, Filter] = {}


def sketch_part(job: Job, part: Part, number: int) -> dict[str, Any]:
    """A part -> its sketch, an array a file."""
    step: Global = job.step
    begun = time.process_time()
    arrays = step.sketch([record for _, record in read_lines(part.path, job.root)])
    for name, array in arrays.items():
        np.save(_sketch_file(job.files, number, name), array, allow_pickle=False)
    write_json(job.files.mark(number, "sketch"), {"cpu": round(time.process_time() - begun, 3)})
    return {"records": part.records}


def _sketch_file(files: StepFolder, number: int, name: str) -> Path:
    return files.work / f"sketch-{number:05d}.{name}.npy"


def apply_part(job: Job, part: Part, number: int) -> dict[str, Any]:
    """A part and the decision -> the rows that stay, some of them several times."""
    path = job.files.mark(number, "decision")
    decision = load_json(path.read_bytes(), str(path))
    drops, copies = decision["drops"], decision["copies"]
    with PartWriter(job.files, number) as writer, open(part.path, "rb", buffering=1 << 20) as file:
        for row, line in enumerate(file):
            name = str(row)
            if name in drops:
                record = from_line(line, job.root)
                writer.drop(record.id, record.source, Dropped(*drops[name]))
                continue
            writer.keep(line)
            for copy in range(2, copies.get(name, 1) + 1):
                record = from_line(line, job.root)
                record.data["id"] = f"{record.id}#{copy}"
                writer.keep(record.to_line())
                writer.counts["added"] += 1
    return {"records": part.records}


def build_unit(job: Job, unit: Any, number: int, parts: tuple[Part, ...]) -> dict[str, Any]:
    """A unit of output, written by the step itself."""
    step: Build = job.step
    begun = time.process_time()
    entry = step.write(unit, _rows(parts, job.root), job.folder)
    cpu = round(time.process_time() - begun, 3)
    counts = {"in": entry["samples"], "out": entry["samples"], "added": 0, "dropped": {}}
    write_json(job.files.mark(number), {**counts, "part": None, "entry": entry, "cpu": cpu})
    return {"records": entry["samples"]}


def forget() -> None:
    """What this process keeps open between parts: of a run that has ended, or whose folders are gone."""
    _opened.clear()
    _rows.cache_clear()
    close_files()


@lru_cache(maxsize=1)
def _rows(parts: tuple[Part, ...], root: Path) -> Rows:
    return Rows(parts, root)
