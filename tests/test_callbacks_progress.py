"""TrainingProgress: the line in a log, the bar in a terminal."""

import io
import logging
import re
import sys

import lightning as L
import pytest
from callback_runs import SAMPLES, Screen
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from tiny import tiny_vlm

from bluelm_lightning.callbacks import (
    TrainingProgress,
    live,
    progress,
)
from bluelm_lightning.callbacks.meter import Reading
from bluelm_lightning.callbacks.progress_text import compact, step_line
from bluelm_lightning.stages import AdamW, WarmupCosine
from bluelm_lightning.stages.base import Stage

pytest_plugins = ["callback_runs"]


def test_step_line_has_the_documented_form():
    # 3100 tokens of 3166 places in one second: 66 / 3166 = 2.1 % padding
    reading = Reading(1.0, 10, tokens=3100, labelled=3000, capacity=3166, tiles=2, samples=5)
    line = step_line(120, 500, {"loss": 1.2341}, reading, 1, 1e-3, 72.2)
    assert line == "step 120/500  loss 1.234  3.1k tok/s  pad 2.1%  lr 1.0e-03  left 0:01:12"
    assert step_line(3, None, {}, reading._replace(seconds=0.0), 1, None, None) == "step 3"
    assert "6.2k tok/s" in step_line(120, 500, {}, reading, 2, None, None)  # two processes
    assert [compact(n) for n in (0.4, 512, 3100, 2_000_000)] == ["0", "512", "3.1k", "2.0M"]


def test_time_left_is_measured_after_the_first_step():
    bar = TrainingProgress()
    bar._total, bar._first = 10, (100.0, 2)  # moment and number of the first step done
    assert bar._seconds_left(2, 100.0) is None
    assert bar._seconds_left(5, 106.0) == 2.0 * 5  # 3 steps in 6 s, 5 to go


def test_progress_prints_a_line_every_n_steps_without_a_terminal(fit, capsys):
    run = fit(TrainingProgress(every_n_steps=2), steps=7)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step", "Stage"))]
    assert lines[0] == "Stage: from step 0 to 7"
    assert [line.split()[1] for line in lines[1:]] == ["1/7", "2/7", "4/7", "6/7", "7/7"]  # first, each 2nd, last
    loss = {step: row["train/loss"] for step, row in run.recorder.rows if "train/loss" in row}[3]
    form = rf"step 4/7  loss {loss:.3f}  [\d.]+k? tok/s  pad \d+\.\d%  lr 1\.0e-03  left 0:\d\d:\d\d"
    assert re.fullmatch(form, lines[3]), lines[3]
    assert lines[-1].endswith("left 0:00:00")


def test_the_rate_is_that_of_the_step_and_the_last_line_has_the_last_loss(fit, capsys):
    stage = Stage(tiny_vlm(), AdamW(lr=1e-3), WarmupCosine(total_steps=9, warmup_steps=5))
    run = fit(TrainingProgress(every_n_steps=1), stage=stage, steps=5, log_every_n_steps=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split("lr ")[1][:7] for line in lines] == ["2.0e-04", "4.0e-04", "6.0e-04", "8.0e-04", "1.0e-03"]
    losses = [line.split("loss ")[1][:5] for line in lines]
    assert losses[0] == losses[1] != losses[2] == losses[3] != losses[4]
    assert losses[4] == f"{float(run.trainer.callback_metrics['train/loss']):.3f}"


def test_progress_goes_on_from_the_resumed_step(fit, tmp_path, capsys):
    fit(ModelCheckpoint(tmp_path, filename="at3", every_n_train_steps=3), steps=3, enable_checkpointing=True)
    fit(TrainingProgress(), steps=5, ckpt_path=str(tmp_path / "at3.ckpt"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step", "Stage"))]
    assert [lines[0], *(line.split()[1] for line in lines[1:])] == ["Stage: from step 3 to 5", "4/5", "5/5"]


def test_progress_counts_optimizer_steps_not_batches(fit, capsys):
    fit(TrainingProgress(), steps=2, accumulate_grad_batches=2)
    lines = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert lines == ["1/2", "2/2"]


def test_progress_shows_validation_on_a_line_of_its_own(fit, capsys):
    run = fit(TrainingProgress(), steps=2, val=SAMPLES[:4], val_check_interval=2)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("validation"))
    loss = run.recorder.column("val/loss")[0]
    assert re.fullmatch(rf"validation at step 2  loss {loss:.3f}  took 0:00:\d\d", line), line


class Chatty(L.Callback):
    """Prints, logs to a handler made before the bar started, and uses the module's print."""

    def __init__(self, handler):
        self.logger = logging.getLogger("chatty")
        self.logger.addHandler(handler)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        print(f"printed {batch_idx}")
        self.logger.warning("logged %s", batch_idx)
        pl_module.print(f"said {batch_idx}")


def test_bar_in_a_terminal_survives_what_others_print(fit, screen):
    terminal = screen()
    handler = logging.StreamHandler(sys.stdout)
    fit(Chatty(handler), TrainingProgress(refresh_seconds=0.0), steps=3, val=SAMPLES[:2], val_check_interval=3)
    text = terminal.getvalue()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    assert re.search(r"Stage\s+\S*━\S* step 3/3  loss \d\.\d+ .* left 0:00:00", plain), plain[-1500:]
    assert re.search(r"validation\s+\S*━\S* at step 3  loss", plain)
    for said in ("printed 1", "logged 1", "said 1"):
        assert re.search(rf"(^|[\r\n]){said}\s*[\r\n]", plain), said  # on a line of its own
    assert sys.stdout is terminal  # both are given back
    assert handler.stream is terminal


def test_bar_draws_at_most_at_its_rate(fit, screen, monkeypatch):
    screen()
    shown = []
    monkeypatch.setattr(live.LiveLines, "show", lambda self, name, *rest: shown.append(rest[1]))
    fit(TrainingProgress(refresh_seconds=1000.0), steps=5)
    assert shown == [1, 5]  # the first and the last


def test_bar_ends_when_training_fails(fit, screen):
    terminal = screen()

    class Failing(Stage):
        def training_step(self, batch, batch_idx):
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fit(TrainingProgress(), stage=Failing(tiny_vlm()))
    assert sys.stdout is terminal


def test_live_lines_take_an_unknown_total():
    lines = live.LiveLines(Console(file=Screen(), force_terminal=True, width=60))
    lines.start()
    lines.show("Stage", "step 7", 7, None)
    lines.stop()
    assert "step 7" in lines._progress.console.file.getvalue()


def test_forced_colour_is_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not progress.is_terminal()
