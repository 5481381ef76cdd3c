"""Real processes that talk over gloo: how tests of several ranks start them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import SystemRandom

import torch

HERE = Path(__file__).parent


def rendezvous() -> dict[str, str]:
    """Address and port at which ranks meet, as environment variables.

    The port lies below those that systems hand out: it is bound seconds later, and other tests ask for ports too.
    """
    while True:
        port = SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def in_fork(work: Callable[[], None], seconds: int = 60) -> int:
    """Exit code of a fork of this process that does ``work``, -9 when it was killed: imports are there already."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        signal.alarm(seconds)
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(code)


def in_ranks(work: Callable[[int], None], folder: Path, count: int = 2, seconds: int = 60) -> None:
    """``work(rank)`` in as many forks, which talk over gloo; fails when one does, also when they wait forever."""

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        wait = timedelta(seconds=seconds / 2)
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", wait, count, number)
        work(number)

    with ThreadPoolExecutor(count) as pool:
        codes = list(pool.map(lambda number: in_fork(partial(rank, number), seconds), range(count)))
    assert codes == [0] * count


def run_processes(script: str, *arguments: str, folder: Path, count: int = 2, timeout: int = 200) -> None:
    """``python tests/SCRIPT ARGUMENTS`` as ``count`` ranks; fails with their logs, also when they wait forever."""
    command = [sys.executable, str(HERE / script), *arguments]
    shared = {**os.environ, **rendezvous(), "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    running = [
        subprocess.Popen(command, env=shared | {"LOCAL_RANK": str(rank)}, stdout=log.open("w"), stderr=log.open("a"))
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=timeout) for process in running]
    except subprocess.TimeoutExpired:
        codes = [-1] * count
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * count, "\n".join(log.read_text()[-3000:] for log in logs)
