"""Work in processes forked from one that has imported everything: a start costs milliseconds, not seconds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

_FORK = multiprocessing.get_context("fork")


def warm_up() -> None:
    """Import what every run needs. One thread from here on: OpenMP does not survive a fork once it has more."""
    os.environ["WANDB_MODE"] = "offline"
    import torch

    torch.set_num_threads(1)
    for name in ("cli.app", "cli.train", "cli.load", "cli.prune", "evaluation"):
        importlib.import_module(f"bluelm_lightning.{name}")


def forked(work: Callable[[], int | None], log: Path) -> Any:
    """A started process that does ``work``, with its output in ``log``; ``exitcode`` is what ``work`` returns, or 1."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = _FORK.Process(target=_inside, args=(work, log))
    process.start()
    return process


def _inside(work: Callable[[], int | None], log: Path) -> None:
    if sys.platform == "linux":  # who starts a run and is killed takes it along
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    with open(log, "w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        try:
            code = work() or 0
        except BaseException as error:
            traceback.print_exc()
            print(f"{type(error).__name__}: {' '.join(str(error).split())}")
            code = 1
    sys.exit(code)


def run_jobs(jobs: Sequence[tuple[str, Callable[[], None]]], count: int, logs: Path) -> Iterator[tuple[str, str]]:
    """Do named jobs, ``count`` at a time; yields each name as it ends, with the last line of its log if it failed.

    A job that fails does not stop the others.
    """
    left, running = list(jobs), dict[int, tuple[str, Any]]()
    try:
        while left or running:
            while left and len(running) < count:
                name, work = left.pop(0)
                process = forked(work, logs / f"{name}.log")
                running[process.sentinel] = (name, process)
            for ended in wait(list(running)):
                name, process = running.pop(ended)  # type: ignore[arg-type, call-overload]
                process.join()
                yield name, "" if process.exitcode == 0 else _last_line(logs / f"{name}.log", process.exitcode)
    finally:
        for _, process in running.values():
            process.terminate()


def _last_line(log: Path, code: int) -> str:
    lines = log.read_text().strip().splitlines()
    return f"{lines[-1] if lines else f'exit code {code}'}; see {log}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time, by a folder or a file of its own; the lock falls with the process that holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
