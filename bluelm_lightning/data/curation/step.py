"""The four kinds of step. A step is a small class whose arguments are its settings; subclass one and name it in YAML.

| kind | you write | it runs |
|---|---|---|
| `Collect` | `units()`, `read(unit)` | a unit of input -> a part, in parallel |
| `Filter` | `process(record)` | part by part, in parallel |
| `Global` | `sketch(records)`, `decide(sketches)` | sketches part by part, one decision, then part by part again |
| `Build` | `plan(counts)`, `write(...)` | a unit of output at a time, in parallel |

Steps travel to other processes by pickle, so they hold settings and no open files. What a step decides may depend on
its settings and on the records before it, never on the number of processes: the outputs are compared byte by byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.types import Sample


class Dropped(NamedTuple):
    """Why a record is left out. Reasons are counted, so they name the rule and not the number."""

    reason: str  # "too short"
    detail: str = ""  # "3 characters, at least 20"
    match: dict[str, Any] | None = None  # what it was compared with, {"id": "test-17", "score": 0.93}


class Step(ABC):  # noqa: B024 - its kinds below have the abstract methods
    """Base of all steps. The constructor keeps each argument under its own name: they are the step's fingerprint."""

    version = 1  # raise it when the same settings give other records

    def settings(self) -> dict[str, Any]:
        """Arguments by name, as JSON can hold them."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def inputs(self) -> list[Path]:
        """Files outside of the pipeline that the result depends on; their sizes and ends enter the fingerprint."""
        return []


class Collect(Step):
    """Brings records in."""

    @abstractmethod
    def units(self) -> list[Any]:
        """Pieces of the input, each read into a part of its own; JSON values, the same for the same input."""

    @abstractmethod
    def read(self, unit: Any) -> Iterator[Sample]:
        """Samples of a unit. ``next`` may raise DataError for a bad record and go on behind it; it is counted."""


class Filter(Step):
    """Looks at one record at a time: keeps it, changes it, or drops it."""

    def prepare(self, folder: Path) -> None:
        """In the main process, before any record: writes what `process` looks things up in to `folder`."""

    def open(self, folder: Path) -> None:
        """In each process, before its first record: opens what `prepare` wrote."""

    @abstractmethod
    def process(self, record: Record) -> Record | Dropped:
        """The record itself (not a copy) if nothing changed, or what became of it."""


@dataclass
class Decision:
    """What becomes of N rows, numbered through all parts.

    Rows with reason 0 stay.
    """

    reason: np.ndarray  # uint8[N]; 0, or 1 + place in `names`
    names: list[str] = field(default_factory=list)
    match: np.ndarray | None = None  # int64[N]; the row that a dropped row was matched with, -1 for none
    score: np.ndarray | None = None  # float32[N]
    copies: np.ndarray | None = None  # int32[N]; how often a kept row is written, default once

    @classmethod
    def keep_all(cls, rows: int) -> Decision:
        return cls(np.zeros(rows, np.uint8), [], np.full(rows, -1, np.int64), np.zeros(rows, np.float32))

    def drop(self, row: int, reason: str, match: int = -1, score: float = 0.0) -> None:
        """Drops one row."""
        if reason not in self.names:
            self.names.append(reason)
        self.reason[row] = 1 + self.names.index(reason)
        if self.match is not None and self.score is not None:
            self.match[row], self.score[row] = match, score


class Global(Step):
    """Compares records with each other."""

    @abstractmethod
    def sketch(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """What the decision needs of a part's records: arrays without objects, a few bytes a record."""

    @abstractmethod
    def decide(self, sketches: Any, rows: Any) -> Decision:
        """In the main process.

        Args:
            sketches: `passes.Sketches`, the arrays of all parts by name.
            rows: `passes.Rows`, any record by its number, read from disk.
        """


class Build(Step):
    """Writes the records out in another form."""

    @abstractmethod
    def plan(self, counts: Sequence[int]) -> list[Any]:
        """Units of output, given the number of records of each part."""

    @abstractmethod
    def write(self, unit: Any, rows: Any, folder: Path) -> dict[str, Any]:
        """Writes one unit's files to `folder` and returns its entry for the manifest, with ``samples``."""

    @abstractmethod
    def finish(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Keys that the manifest of the whole step holds besides the usual ones."""
