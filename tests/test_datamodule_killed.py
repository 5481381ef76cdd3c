"""Exact resume after kill -9, in real processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from resume_runs import RUNS, WHOLE

import bluelm_lightning


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, Path(__file__).parent / "resume_runs.py", folder]
    here = os.environ | {"PYTHONPATH": str(Path(bluelm_lightning.__file__).parents[1])}  # the package under test
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=here)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def diary(folder: Path, kind: str, rank: int = 0) -> list[dict]:
    lines = (folder / f"{kind}.{rank}.jsonl").read_text().splitlines()
    return [{key: line[key] for key in ("loss", "samples", "cursor", "step")} for line in map(json.loads, lines)]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_bit_for_bit(name, runs):
    folder, world = runs / name, RUNS[name].get("world", 1)
    codes = json.loads((runs / "codes.json").read_text())[name]
    logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
    assert codes[1:] == [[-9] * world, [0] * world], logs
    for rank in range(world):
        whole = diary(runs / WHOLE[name], "whole", rank)
        killed, resumed = diary(folder, "killed", rank), diary(folder, "resumed", rank)
        saved = len(whole) - len(resumed)
        assert 0 < saved < len(killed) < len(whole), "killed after a checkpoint, resumed from it"
        assert killed == whole[: len(killed)]
        assert resumed == whole[saved:]


def test_no_batch_comes_twice(runs):
    for name in set(WHOLE.values()):
        samples = [tuple(line["samples"]) for line in diary(runs / name, "whole")]
        assert len(set(samples)) == len(samples) >= 12


def test_two_processes_share_a_round_and_end_it_together(runs):
    ranks = [diary(runs / "two processes", "whole", rank) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 12
    first_rounds = [[name for line in rank if line["step"] <= 3 for name in line["samples"]] for rank in ranks]
    together = Counter(first_rounds[0] + first_rounds[1])
    assert set(together.values()) == {1}
    assert len(together) == 20 + 12  # half of 40 and of 25


def ledger(path: Path) -> dict:
    """All that the file holds, but for the name of the run that wrote it."""
    with np.load(path) as file:
        notes = json.loads(file["notes"].tobytes())
        return {name: file[name].tobytes() for name in file.files if name != "notes"} | {"notes": notes | {"run": ""}}


def test_the_ledger_of_a_killed_run_is_the_same_to_the_bit(runs):
    for name in ("resampled", "resampled, two workers", "resampled, two processes"):
        assert ledger(runs / name / "resumed.npz") == ledger(runs / WHOLE[name] / "whole.npz")


def test_shares_followed_what_was_learnt_and_caps_held(runs):
    plain, moved = (diary(runs / name, "whole") for name in ("no worker", "resampled"))
    assert [line["samples"] for line in plain[:2]] == [line["samples"] for line in moved[:2]]
    assert plain[6:] != moved[6:]
    for name, ranks in (("resampled", 1), ("resampled, two processes", 2)):
        lines = [line for rank in range(ranks) for line in diary(runs / name, "whole", rank)]
        seen = Counter(sample for line in lines for sample in line["samples"])
        assert max(times for sample, times in seen.items() if sample.startswith("texts")) == 1
        assert max(times for sample, times in seen.items() if sample.startswith("talks")) == 2


def test_two_processes_decide_the_same(runs):
    """Each sees other samples; had they other shares, samples would be drawn twice or never."""
    ranks = [diary(runs / "resampled, two processes", "whole", rank) for rank in (0, 1)]
    first, second = ({sample for line in rank for sample in line["samples"] if "texts" in sample} for rank in ranks)
    assert first
    assert second
    assert not first & second
