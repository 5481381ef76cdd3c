"""LiveLines: a few lines at the bottom of the terminal that change in place, each with a bar."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any


def is_terminal() -> bool:
    """Whether lines on stdout can change in place. ``FORCE_COLOR`` in a CI log does not make it so."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class LiveLines:
    """Lines by name; what others print, log or warn appears above them.

    Args:
        console: a rich console; default: stdout.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=console or Console(),
            auto_refresh=False,  # no thread beside the training: `show` draws
            expand=True,
            redirect_stderr=sys.stderr.isatty(),  # `2> errors.log` stays in the file
        )
        self._lines: dict[str, Any] = {}
        self._moved: list[tuple[logging.StreamHandler, Any]] = []

    def start(self) -> None:
        before = sys.stdout, sys.stderr
        self._progress.start()
        # A log handler holds the stream of the moment it was made and would write into the bar.
        after = {id(old): new for old, new in zip(before, (sys.stdout, sys.stderr)) if old is not new}
        for handler in _stream_handlers():
            if id(handler.stream) in after:
                self._moved.append((handler, handler.stream))
                handler.setStream(after[id(handler.stream)])

    def show(self, name: str, text: str, done: float, total: float | None) -> None:
        """Draw the line ``name`` with its bar at ``done`` of ``total``; ``None`` = unknown."""
        if name not in self._lines:
            self._lines[name] = self._progress.add_task(name, total=total, text="")
        self._progress.update(self._lines[name], completed=done, total=total, text=text)
        self._progress.refresh()

    def stop(self) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []
        self._progress.stop()


def _stream_handlers() -> list[logging.StreamHandler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", [])]
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
