"""How far the pipeline is: a bar in a terminal, a line a step elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from bluelm_lightning.data.curation.step import Step


class StepProgress:
    """One bar, for the step under way.

    Args:
        show: False says nothing at all.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self._bar: Any = None
        self._task: Any = None

    def begin(self, name: str, total: int | None) -> None:
        """A stage of a step begins; `total` records are to be seen, None if nobody knows."""
        self._close()
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(name, total=total)

    def advance(self, records: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, records)

    def finish(self, name: str, manifest: dict[str, Any], again: bool = False) -> None:
        """A step is done; `again` if it was done before this run."""
        self._close()
        if self.show:
            print(step_line(name, manifest) + "  (done before)" * again, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def step_line(name: str, manifest: dict[str, Any]) -> str:
    """``03_LengthFilter: 900 in, 880 out, 20 dropped (too short 20)``."""
    dropped = manifest["dropped"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
    added = f", {manifest['added']} repeated" if manifest["added"] else ""
    total = f"{sum(dropped.values())} dropped" + (f" ({reasons})" if reasons else "")
    return f"{name}: {manifest['in']} in, {manifest['out']} out, {total}{added}"


def step_name(number: int, step: Step) -> str:
    """``03_LengthFilter``, the name of a step's folder."""
    return f"{number:02d}_{type(step).__name__}"
