"""The room of the claims: intervals, kept figures, jobs that are killed, the page."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy.stats import t as student_t
from tiny import tiny_tokenizer

from bluelm_lightning.data.shards import ShardWriter
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.evaluation.statistics import mean_interval, t_quantile
from bluelm_lightning.reproduce import __main__ as command
from bluelm_lightning.reproduce import prepare
from bluelm_lightning.reproduce.claim import Claim, ClaimFile, Measured, find_claims, row_of
from bluelm_lightning.reproduce.figures import Figures, code_key, files_behind, sources_behind
from bluelm_lightning.reproduce.jobs import forked, run_jobs
from bluelm_lightning.reproduce.lab import Lab
from bluelm_lightning.reproduce.report import page, update
from bluelm_lightning.types import Sample

KEYS = {"claim", "report", "ours", "low", "high", "baseline", "holds", "seeds", "command"}


# ---------------------------------------------------------------- interval
def test_interval_by_hand():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])  # deviation 1, so half is 4.303 / sqrt(3)
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - 2.4843, 2.0 + 2.4843), abs=1e-4)
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        mean_interval([1.0])


@pytest.mark.parametrize("freedom", [1, 2, 7, 30, 31, 60, 1000])
def test_quantiles_are_those_of_student(freedom):
    assert t_quantile(freedom) == pytest.approx(student_t.ppf(0.975, freedom), rel=1e-3)


# ---------------------------------------------------------------- figures
CODE = """
import os, signal
from pathlib import Path
from bluelm_lightning.reproduce.claim import Claim, Measured
CLAIM = Claim(number={n}, claim="a > b", report="so", baseline="b", unit="nats", tried="all")
def measure(lab, seed):
    with open("{log}", "a") as file:
        file.write(f"{n} {{seed}}\\n")
    {trap}
    return Measured(ours=2.0, baseline=1.0, gain=1.0 + seed / 10, details={{"extra": float(seed)}})
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder of fake claims, from which the command is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(command, "warm_up", lambda: None)
    files: list[ClaimFile] = []

    def write(number: int, trap: str = "") -> ClaimFile:
        path = tmp_path / f"claim_{number}.py"
        path.write_text(CODE.format(n=number, log=tmp_path / "log", trap=trap))
        sys.modules.pop(path.stem, None)
        file = ClaimFile(number, path, path.stem)
        files[:] = [*(f for f in files if f.number != number), file]
        return file

    def found(wanted=()):
        return sorted((f for f in files if not wanted or f.number in wanted), key=lambda f: f.number)

    monkeypatch.setattr(command, "find_claims", found)
    yield write
    for name in ("claim_90", "claim_91"):
        sys.modules.pop(name, None)


def measured_now() -> list[str]:
    """Claim and seed of each measurement since the last call."""
    log = Path("log")
    lines = log.read_text().splitlines() if log.is_file() else []
    log.unlink(missing_ok=True)
    return sorted(lines)


def rows() -> dict:
    return json.loads(Path("docs/reproduction.json").read_text())["claims"]


def test_a_claim_that_is_killed_does_not_lose_the_others_and_goes_on(room, capsys):
    room(90)
    trap = "if seed == 1 and not os.path.exists('again'): os.kill(os.getpid(), signal.SIGKILL)"
    room(91, trap)
    assert command.main(["--jobs", "2"]) == 1
    assert "claim_91_seed_1: failed" in capsys.readouterr().out
    assert measured_now() == ["90 0", "90 1", "90 2", "91 0", "91 1", "91 2"]
    assert set(rows()) == {"90"}
    Path("again").touch()
    assert command.main([]) == 0
    assert measured_now() == ["91 1"]
    assert set(rows()) == {"90", "91"}
    assert command.main([]) == 0
    assert measured_now() == []


def test_the_row_says_what_was_measured(room):
    room(90)
    assert command.main(["--seeds", "3"]) == 0
    row = rows()["90"]
    assert set(row) >= KEYS
    assert (row["ours"], row["seeds"], row["holds"]) == (pytest.approx(1.1), 3, True)
    assert row["low"] == pytest.approx(1.1 - 4.303 * 0.1 / 3**0.5, abs=1e-4)
    assert row["baseline"] == "b: 1"
    assert row["details"] == {"extra": 1.0}
    assert row["command"] == "python -m bluelm_lightning.reproduce --claims 90 --seeds 3"
    assert Path("docs/REPRODUCTION.md").read_text() == page(json.loads(Path("docs/reproduction.json").read_text()))


def test_a_changed_claim_is_measured_again_and_its_old_row_goes(room):
    room(90)
    room(91)
    assert command.main([]) == 0
    measured_now()
    room(90, "pass  # changed")
    assert command.main(["--claims", "91"]) == 0
    assert set(rows()) == {"91"}
    assert measured_now() == []
    assert command.main([]) == 0
    assert measured_now() == ["90 0", "90 1", "90 2"]


def test_a_claim_below_its_bar_stands_there_as_such(tmp_path):
    claim = Claim(7, "it is so", "it is", "the other", "points", bar=0.9, tried="We tried much.")
    row = row_of(claim, [Measured(1.0, 0.0, 1.0, {}), Measured(1.0, 0.0, 0.5, {})], "make it", "k")
    assert not row["holds"]
    update(tmp_path, {7: row}, [])
    text = (tmp_path / "REPRODUCTION.md").read_text()
    assert "**does not hold**" in text
    assert "We tried much." in text
    assert "bar is 0.9" in text


def test_wrong_numbers_are_named(capsys):
    assert command.main(["--claims", "999"]) == 2
    assert "no claim has number 999; there are" in capsys.readouterr().err
    assert command.main(["--seeds", "1"]) == 2
    assert "--seeds: 1 is below 2" in capsys.readouterr().err


# ---------------------------------------------------------------- jobs
def test_a_job_that_raises_is_told_by_its_last_line(tmp_path):
    def fails():
        raise ValueError("no such thing")

    ended = dict(run_jobs([("bad", fails), ("good", lambda: None)], 1, tmp_path))
    assert ended["good"] == ""
    assert ended["bad"].startswith("ValueError: no such thing; see ")


@pytest.mark.skipif(sys.platform != "linux", reason="processes take their children along on Linux alone")
def test_a_killed_process_takes_its_run_along(tmp_path):
    def outer():
        process = forked(lambda: time.sleep(60), tmp_path / "inner.log")
        (tmp_path / "pid").write_text(f"{process.pid} ")
        process.join()

    process = forked(outer, tmp_path / "outer.log")
    until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().endswith(" "))
    inner = int((tmp_path / "pid").read_text())
    until(lambda: (tmp_path / "inner.log").is_file())
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    until(lambda: not Path(f"/proc/{inner}").exists() or "Z" in Path(f"/proc/{inner}/stat").read_text().split()[2])


def until(true, seconds: float = 20.0) -> None:
    end = time.time() + seconds
    while not true():
        assert time.time() < end
        time.sleep(0.02)


# ---------------------------------------------------------------- lab
@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab with texts of its own in the place of the recipe's."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with ShardWriter(tmp_path / "data" / "text") as writer:
        for n in range(32):
            writer.write(Sample(id=f"t{n}", source="text", text="the sum is 12 " * 4))
    monkeypatch.setattr(prepare, "_stale", lambda note: False)
    return Lab(tmp_path)


SHORT = ["--trainer.max_steps=2", "--data.batch_rows=1"]


def test_a_run_of_the_lab_is_an_ordinary_run_on_its_own_data(lab):
    folder = lab.runs(3).fit("a", "tiny/mini_text.yaml", options=SHORT)
    _, data = lab.load(folder)
    assert data.seed == 3
    assert len(data.opened[0]) == 32
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    (folder / "done.key").unlink()  # killed after its last checkpoint: there is nothing to go on with
    again = lab.runs(3)
    again._run = None
    assert again.fit("a", "tiny/mini_text.yaml", options=SHORT) == folder
    assert (folder / "done.key").is_file()


def test_a_run_that_fails_says_why(lab):
    with pytest.raises(ConfigError, match=r"the run a ended with exit code 2: .*typo"):
        lab.runs(0).fit("a", "tiny/mini_text.yaml", options=["--data.typo=1"])
    with pytest.raises(ConfigError, match="no source 'texts'; there are text"):
        lab.sources({"texts": 1.0})


# ---------------------------------------------------------------- the claims that there are
@pytest.mark.parametrize("file", find_claims(), ids=lambda file: file.path.stem)
def test_every_claim_is_whole(file):
    claim = file.claim
    assert claim.number == file.number
    assert callable(file.measure)
    assert all((claim.claim, claim.report, claim.baseline, claim.unit, claim.tried))
    assert "|" not in claim.claim + claim.baseline, "it would end the cell of a table"
    assert file.path in files_behind(file.path)
    sources_behind(file.path)


def test_a_figure_depends_on_settings_and_data():
    [first] = find_claims([1])
    names = {path.name for path in files_behind(first.path)}
    assert {"claim_1.py", "ladder.py", "mini_teacher.yaml", "mini_distill.yaml", "mini_text.yaml"} <= names
    assert "text" in sources_behind(first.path)
    keys = [Figures(Path(), lambda names, data=data: data).key(first.path) for data in ("a", "b")]
    assert keys[0] != keys[1]
    assert code_key(first.path) == code_key(first.path)


def test_the_committed_page_is_made_from_the_committed_figures():
    docs = Path(command.__file__).parents[2] / "docs"
    content = json.loads((docs / "reproduction.json").read_text())
    assert content["claims"]
    assert (docs / "REPRODUCTION.md").read_text() == page(content)
    for row in content["claims"].values():
        assert set(row) >= KEYS
        assert row["holds"] == (row["low"] > row["bar"])
        assert row["seeds"] >= 3
