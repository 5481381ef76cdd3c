"""Real processes that talk over gloo: how tests of several ranks start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_processes(script: str, *arguments: str, folder: Path, count: int = 2, timeout: int = 200) -> None:
    """``python tests/SCRIPT ARGUMENTS`` as ``count`` ranks; fails with their logs, also when they wait forever."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, str(HERE / script), *arguments]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
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
