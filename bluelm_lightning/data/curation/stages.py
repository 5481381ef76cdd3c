"""StepRun: one step over all parts, as tasks of an engine. What is done already is left out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.curation import passes
from bluelm_lightning.data.curation.engine import Engine
from bluelm_lightning.data.curation.folder import Part, StepFolder
from bluelm_lightning.data.curation.passes import Job, Rows, Sketches
from bluelm_lightning.data.curation.progress import StepProgress
from bluelm_lightning.data.curation.step import Build, Collect, Decision, Filter, Global, Step
from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import ConfigError, DataError

TIMINGS = "timings.json"


class StepRun:
    """Runs a step of any kind.

    Args:
        step: what to run.
        folder: its own, begun.
        root: the pipeline's.
        engine: where parts are worked on.
        progress: what to tell.
    """

    def __init__(self, step: Step, folder: StepFolder, root: Path, engine: Engine, progress: StepProgress) -> None:
        self.step, self.folder, self.root, self.engine, self.progress = step, folder, root, engine, progress
        self.job = Job(step, folder.path, root)

    def run(self, parts: Sequence[Part], key: str) -> None:
        """Raises ConfigError or DataError of the step."""
        begun, cpu = time.perf_counter(), time.process_time()
        more: dict[str, Any] = {}
        if isinstance(self.step, Collect):
            units = self.step.units()
            self._tasks(passes.collect_part, [(self.job, unit, number) for number, unit in enumerate(units)], None)
            marks = self._marks(len(units))
            if not sum(mark["out"] for mark in marks):
                raise DataError(f"no record could be read; {_first(marks)}", str(self.folder.path))
        elif isinstance(self.step, Build):
            marks, more = self._build(parts)
        else:
            marks = self._over_parts(parts)
        settings = json.loads(json.dumps(self.step.settings(), sort_keys=True, default=str))
        known = {"step": type(self.step).__name__, "settings": settings, "key": key}
        here = time.process_time() - cpu  # this process: decisions, and with one process everything
        sketched = self.folder.marks(len(parts), "sketch").values()
        counted = 0 if self._alone() else sum(mark["cpu"] for mark in [*marks, *sketched])
        self._note_time(time.perf_counter() - begun, here + counted)
        self.folder.finish(known, marks, more)

    def _over_parts(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        total = sum(part.records for part in parts)
        each = [(self.job, part, number) for number, part in enumerate(parts)]
        if isinstance(self.step, Filter):
            if len(self.folder.marks(len(parts))) < len(parts):
                self.step.prepare(self.folder.work)
            self._tasks(passes.filter_part, each, total)
        elif isinstance(self.step, Global):
            self._tasks(passes.sketch_part, each, total, "sketch")
            self._decide(parts)
            self._tasks(passes.apply_part, each, total)
        else:
            raise ConfigError(f"{type(self.step).__name__} is none of Collect, Filter, Global, Build; subclass one")
        return self._marks(len(parts))

    def _decide(self, parts: Sequence[Part]) -> None:
        """Writes what becomes of each part's rows, unless that is done."""
        if len(self.folder.marks(len(parts), "decision")) == len(parts):
            return
        assert isinstance(self.step, Global)
        counts = [part.records for part in parts]
        rows, sketches = Rows(parts, self.root), Sketches(self.folder, counts)
        self.progress.begin(f"{self.folder.path.name} decides", None)
        decision = self.step.decide(sketches, rows)
        for number, start in enumerate(sketches.starts[:-1]):
            here = slice(start, start + counts[number])
            write_json(self.folder.mark(number, "decision"), _of_part(decision, here, rows))

    def _build(self, parts: Sequence[Part]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        assert isinstance(self.step, Build)
        units = self.step.plan([part.records for part in parts])
        tasks = [(self.job, unit, number, tuple(parts)) for number, unit in enumerate(units)]
        self._tasks(passes.build_unit, tasks, sum(part.records for part in parts))
        marks = self._marks(len(units))
        return marks, self.step.finish([mark["entry"] for mark in marks])

    def _tasks(self, function: Callable, each: list[tuple], total: int | None, stage: str = "part") -> None:
        """Runs the tasks whose marks are not there yet."""
        done = self.folder.marks(len(each), stage)
        self.progress.begin(f"{self.folder.path.name} {stage}s", total)
        self.progress.advance(sum(mark.get("in", 0) for mark in done.values()))
        left = [(function, arguments) for number, arguments in enumerate(each) if number not in done]
        for result in self.engine.map(left):
            self.progress.advance(result["records"])

    def _marks(self, count: int) -> list[dict[str, Any]]:
        marks = self.folder.marks(count)
        return [marks[number] for number in range(count)]

    def _alone(self) -> bool:
        return getattr(self.engine, "processes", None) == 1

    def _note_time(self, wall: float, cpu: float) -> None:
        """Seconds of a step go to a file of their own: manifests are the same for every run."""
        path = self.root / TIMINGS
        held = json.loads(path.read_text()) if path.is_file() else {}
        held[self.folder.path.name] = {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
        write_json(path, held, indent=1)


def _of_part(decision: Decision, here: slice, rows: Rows) -> dict[str, Any]:
    """The rows of a part that do not simply stay: ``{"drops": {row: [reason, detail, match]}, "copies": {row: n}}``."""
    reason = decision.reason[here]
    drops = {}
    for row in np.flatnonzero(reason).tolist():
        match = -1 if decision.match is None else int(decision.match[here][row])
        found: dict[str, Any] | None = None
        if match >= 0:
            other = rows[match]
            found = {"id": other.id, "source": other.source}
            if decision.score is not None and decision.score[here][row]:
                found["score"] = round(float(decision.score[here][row]), 4)
        drops[str(row)] = [decision.names[reason[row] - 1], "", found]
    copies = decision.copies[here] if decision.copies is not None else np.zeros(0, np.int32)
    return {"drops": drops, "copies": {str(row): int(copies[row]) for row in np.flatnonzero(copies > 1).tolist()}}


def _first(marks: list[dict[str, Any]]) -> str:
    reasons = [reason for mark in marks for reason in mark["dropped"]]
    return f"the first was dropped for: {reasons[0]}" if reasons else "the input is empty"
