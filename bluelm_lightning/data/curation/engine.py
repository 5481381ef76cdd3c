"""Where the parts of a step are worked on: processes of this machine, or Ray."""

from __future__ import annotations

import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bluelm_lightning.errors import ConfigError

Task = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]  # a function of a module, and its arguments


class Engine(ABC):
    """Runs tasks that read and write files of one shared folder."""

    @abstractmethod
    def map(self, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        """Results in the order in which they are done. The first error of a task is raised."""

    def close(self) -> None:  # noqa: B027 - not every engine holds something
        """Ends what was started."""


class LocalEngine(Engine):
    """Processes of this machine.

    Args:
        processes: 1 works in this process; default: every core this process may run on.
    """

    def __init__(self, processes: int | None = None) -> None:
        if processes is not None and processes < 1:
            raise ConfigError(f"{processes} is less than 1; leave it out for all cores", "processes")
        self.processes = processes or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def map(self, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        if self.processes == 1 or len(tasks) < 2:
            yield from (function(*arguments) for function, arguments in tasks)
            return
        if self._pool is None:  # spawn: a fork of a process with threads (torch, rich, pytest) may wait forever
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, initializer=_begin)
        waiting = [self._pool.submit(function, *arguments) for function, arguments in tasks]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BrokenProcessPool as error:
            raise OSError("a worker process was killed, perhaps for memory; run again with fewer processes") from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin() -> None:
    """A worker uses one core, and ends with its parent: a killed parent cannot tell it to."""
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class RayEngine(Engine):
    """Tasks as rows of a Ray data set, one block each, worked on by ``map_batches`` wherever Ray has a free core.

    Every node must see the pipeline's folder and inputs under the same path. What is decided over all parts
    (`decide` of global steps) is decided in the process that runs the pipeline.

    Args:
        address: of a running cluster, ``auto`` or ``ray://HOST:PORT``; default: Ray starts on this machine,
        processes: with so many cores.
    """

    def __init__(self, address: str | None = None, processes: int | None = None) -> None:
        self.address, self.processes, self._started = address, processes, False

    def map(self, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("engine ray needs pip install 'bluelm-lightning[ray]'", "engine") from error

        if not ray.is_initialized():
            cores: dict[str, Any] = {} if self.address else {"num_cpus": self.processes, "include_dashboard": False}
            ray.init(address=self.address, log_to_driver=False, **cores)
            self._started = True
        if not tasks:
            return
        held = ray.put(list(tasks))
        numbers = ray.data.range(len(tasks), override_num_blocks=len(tasks))
        done = numbers.map_batches(_work, batch_size=1, fn_kwargs={"held": held}, batch_format="numpy")  # type: ignore[arg-type]
        for row in done.iter_rows():
            yield row["result"]

    def close(self) -> None:
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def _work(batch: dict[str, Any], held: Any) -> dict[str, Any]:
    import numpy as np
    import ray

    tasks = ray.get(held)
    results = np.empty(len(batch["id"]), dtype=object)
    for place, number in enumerate(batch["id"]):
        function, arguments = tasks[number]
        results[place] = function(*arguments)
    return {"result": results}
