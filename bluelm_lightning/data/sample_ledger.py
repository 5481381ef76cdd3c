"""SampleLedger: what is known of every sample and source, in one file that lives across stages."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bluelm_lightning.errors import ConfigError

_MEMORY = 0.5  # share of a sample's old loss or pass rate that is kept when it is seen again
_COLUMNS = {"seen": np.int32, "loss": np.float32, "rate": np.float32, "last": np.int64}
_EMPTY = {"seen": 0, "loss": np.nan, "rate": np.nan, "last": 0}


@dataclass
class SourceTotals:
    """Of one source over all stages. A period lies between two decisions; its loss is a mean over labelled tokens."""

    tokens: int = 0
    labelled: int = 0
    periods: list[list[float]] = field(default_factory=list)  # (tokens, loss in nats) of the last few, oldest first


@dataclass
class SourceLedger:
    """One source: its totals, and a row of figures for each sample.

    Args:
        fingerprint: of the source, so that another one of the same name is refused.
        columns: ``seen`` int32[N] times, ``loss`` float32[N] nats a labelled token and ``rate`` float32[N] pass rate,
            both smoothed and NaN where unknown, ``last`` int64[N] step of the ledger's clock when last seen.
    """

    fingerprint: str
    columns: dict[str, np.ndarray]
    totals: SourceTotals = field(default_factory=SourceTotals)

    @classmethod
    def empty(cls, samples: int, fingerprint: str) -> SourceLedger:
        return cls(fingerprint, {name: np.full(samples, _EMPTY[name], kind) for name, kind in _COLUMNS.items()})

    def __len__(self) -> int:
        return len(self.columns["seen"])

    def record(self, index: int, seen: int, clock: int, **values: float) -> None:
        """A sample was seen for the ``seen``-th time; ``values`` are its new loss or pass rate."""
        self.columns["seen"][index] = max(int(self.columns["seen"][index]), seen)
        self.columns["last"][index] = clock
        for name, value in values.items():
            old = float(self.columns[name][index])
            self.columns[name][index] = value if np.isnan(old) else _MEMORY * old + (1 - _MEMORY) * value

    def dump(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Plain values, and the rows of the samples that were ever seen."""
        (index,) = np.nonzero(self.columns["seen"])
        note = {"fingerprint": self.fingerprint, "samples": len(self), "totals": asdict(self.totals)}
        return note, {"index": index.astype(np.int64), **{name: col[index] for name, col in self.columns.items()}}

    @classmethod
    def parse(cls, note: dict[str, Any], rows: dict[str, Any]) -> SourceLedger:
        made = cls.empty(note["samples"], note["fingerprint"])
        made.totals = SourceTotals(**note["totals"])
        for name, column in made.columns.items():
            column[np.asarray(rows["index"])] = np.asarray(rows[name])
        return made


class SampleLedger:
    """Ledgers by name of source. Whoever opens it adds a stage; sources of other stages are kept as they are.

    The file also holds the ledger as it was before the run that wrote it: a run that is begun anew in the same folder
    replaces its own figures, and does not count its samples twice. Two runs at one time would overwrite each other.

    Attributes:
        clock: optimizer steps of all stages; ``clock - last`` is a sample's staleness.
        stage: number of this run among those that have used the ledger, from 0 on.
        sources: by name.
    """

    def __init__(self) -> None:
        self.clock, self.stage, self.sources = 0, 0, dict[str, SourceLedger]()

    @classmethod
    def begin(cls, path: Path | None, run: str, sources: dict[str, tuple[int, str]]) -> SampleLedger:
        """What earlier stages left in ``path``, if anything, ready for another one.

        Args:
            path: the file; ``None`` = begin with nothing.
            run: name of this run; if it wrote the file itself, what was there before it counts.
            sources: number of samples and fingerprint of each source.

        Raises:
            ConfigError: no ledger in that file, or a source that has another content than the one it knows.
        """
        ledger = cls()
        if path is not None and path.is_file():
            held, by = _read(path)
            ledger.load_state_dict(held["before"] if by == run else held["after"])
            ledger.stage += by != run
        for name, (samples, fingerprint) in sources.items():
            known = ledger.sources.setdefault(name, SourceLedger.empty(samples, fingerprint))
            if (len(known), known.fingerprint) != (samples, fingerprint):
                raise ConfigError(
                    f"{path} knows the source {name!r} with {len(known)} other samples than these {samples}; give it "
                    "another name, or begin another ledger",
                    "trainer.callbacks.ledger",
                )
        return ledger

    def save(self, path: Path, run: str, before: dict[str, Any]) -> None:
        """Write it whole or not at all: a reader, or a kill, never meets half a file."""
        arrays: dict[str, np.ndarray] = {}
        notes: dict[str, Any] = {"run": run}
        for part, state in (("before", before), ("after", self.state_dict())):
            rows = state["rows"]
            notes[part] = {**{k: v for k, v in state.items() if k != "rows"}}
            arrays |= {f"{part}/{n}/{col}": a for n, table in enumerate(rows) for col, a in table.items()}
        arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.tmp")
        with half.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(half, path)

    def state_dict(self) -> dict[str, Any]:
        dumped = [source.dump() for source in self.sources.values()]
        notes = dict(zip(self.sources, (note for note, _ in dumped)))
        return {"clock": self.clock, "stage": self.stage, "sources": notes, "rows": [rows for _, rows in dumped]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock, self.stage = state["clock"], state["stage"]
        tables = zip(state["sources"].items(), state["rows"])
        self.sources = {name: SourceLedger.parse(note, rows) for (name, note), rows in tables}

    def most_seen(self, names: Sequence[str], count: int) -> list[tuple[str, int, int]]:
        """(source, index, times) of the samples that were seen most often, the most first."""
        found = []
        for name in names:
            seen = self.sources[name].columns["seen"]
            top = np.argsort(-seen, kind="stable")[:count]
            found += [(name, int(index), int(seen[index])) for index in top if seen[index]]
        return sorted(found, key=lambda row: (-row[2], names.index(row[0]), row[1]))[:count]


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The states before and after the run that wrote the file, and its name."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        notes = json.loads(arrays["notes"].tobytes())
        for part in ("before", "after"):
            columns = ("index", *_COLUMNS)
            counted = range(len(notes[part]["sources"]))
            notes[part]["rows"] = [{col: arrays[f"{part}/{n}/{col}"] for col in columns} for n in counted]
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        raise ConfigError(f"{path} holds no ledger ({error}); name another file", "trainer.callbacks.ledger") from error
    return notes, notes["run"]
