"""Every stage but fine-tuning and RL, which have their own: twenty stored losses each, and a resume that is exact.

A change of the numbers is a commit of its own, with the reason: ``python tests/test_stage_golden.py [NAME ...]`` writes
them anew.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from stage_runs import SLOW, STAGES, golden

GOLDEN = Path(__file__).parent / "golden" / "stages.json"


@pytest.mark.parametrize("name", STAGES)
def test_it_gives_the_stored_losses(name, tmp_path):
    torch.set_num_threads(1)
    stored = json.loads(GOLDEN.read_text())[name]
    assert len(stored) == 20
    assert golden(name, tmp_path) == pytest.approx(stored, abs=2e-5)  # equal on one machine
    assert sum(stored[-4:]) < sum(stored[:4])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder, exit codes and standard error of the runs of a stage; those of its kind run together, once."""

    @cache
    def run(slow: bool):
        folder = tmp_path_factory.mktemp("runs")
        names = [name for name in STAGES if (name in SLOW) == slow]
        command = [sys.executable, str(Path(__file__).parent / "stage_runs.py"), str(folder), *names]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return folder, json.loads((folder / "codes.json").read_text()), done.stderr

    return lambda name: run(name in SLOW)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in STAGES])
def test_a_killed_run_goes_on_bit_by_bit(name, runs):
    folder, codes, said = runs(name)
    assert codes[name] == [0, -9, 0], said[-2000:]
    whole, killed, resumed = (
        (folder / name / f"{p}.txt").read_text().splitlines() for p in ("whole", "killed", "resumed")
    )
    assert (len(whole), len(killed), len(resumed)) == (12, 8, 6)
    assert killed == whole[:8]
    assert resumed == whole[6:]


def write(names: list[str]) -> None:
    torch.set_num_threads(1)
    found = json.loads(GOLDEN.read_text())
    with TemporaryDirectory() as folder:
        found |= {name: golden(name, Path(folder) / name) for name in names or STAGES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
