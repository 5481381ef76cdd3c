"""Callbacks on a real tiny stage and a real data module over samples in memory."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from rich.console import Console
from tiny import png, question, random_doc, tiny_tokenizer, tiny_vlm

from bluelm_lightning.callbacks import (
    BatchPreview,
    GradNorms,
    SampleTable,
    StopOnNaN,
    Throughput,
    TrainingProgress,
    TrainingStopped,
    live,
    names,
    progress,
)
from bluelm_lightning.callbacks.meter import Meter, Reading, paused
from bluelm_lightning.callbacks.monitors import components, l2_norm
from bluelm_lightning.callbacks.preview import _CONTROL
from bluelm_lightning.callbacks.progress_text import compact, step_line
from bluelm_lightning.callbacks.sample_page import SampleRow, render, strip, thumbnail
from bluelm_lightning.callbacks.samples import undisturbed
from bluelm_lightning.data.packing import pack
from bluelm_lightning.datamodules.base import MultimodalDataModule, SourceSpec
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.types import Sample

SAMPLES = [question(f"what is {n}?", "yes" * (n % 3 + 1), images=n % 2, id=f"s{n}") for n in range(12)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


class Recorder(Logger):
    """Keeps each row that Lightning would send to a tracker."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "recorder", 0

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def column(self, name):
        return [metrics[name] for _, metrics in self.rows if name in metrics]


@pytest.fixture
def fit(tmp_path, tokenizer_folder):
    """Trains a tiny stage; every piece can be replaced."""

    def run(*callbacks, steps=4, stage=None, samples=SAMPLES, val=None, ckpt_path=None, folder=tmp_path, **options):
        torch.manual_seed(0)
        stage = stage or Stage(tiny_vlm(), AdamW(lr=1e-3))
        val_sources = [SourceSpec(source=val, name="held_out")] if val else None
        data = MultimodalDataModule(
            tokenizer_folder, [SourceSpec(source=samples, name="tiny")], val_sources,
            row_tokens=48, batch_rows=2, num_workers=0,
        )  # fmt: skip
        recorder = Recorder()
        bar = any(isinstance(callback, TrainingProgress) for callback in callbacks)
        settings = {"logger": recorder, "enable_checkpointing": False, "log_every_n_steps": 1, **options}
        trainer = L.Trainer(
            accelerator="cpu", max_steps=steps, callbacks=list(callbacks), default_root_dir=folder,
            enable_progress_bar=bar, enable_model_summary=False, num_sanity_val_steps=0, **settings,
        )  # fmt: skip
        trainer.fit(stage, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
        return SimpleNamespace(trainer=trainer, stage=stage, data=data, recorder=recorder)

    return run


# ---------------------------------------------------------------------- progress
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


class Screen(io.StringIO):
    def isatty(self):
        return True


class Chatty(L.Callback):
    """Prints, logs to a handler made before the bar started, and uses the module's print."""

    def __init__(self, handler):
        self.logger = logging.getLogger("chatty")
        self.logger.addHandler(handler)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        print(f"printed {batch_idx}")
        self.logger.warning("logged %s", batch_idx)
        pl_module.print(f"said {batch_idx}")


@pytest.fixture
def screen(monkeypatch):
    """Makes stdout a terminal of 100 columns, recorded. Called in the test: pytest swaps stdout after a fixture."""

    def open_screen():
        out = Screen()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        return out

    return open_screen


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


# ---------------------------------------------------------------------- throughput
class Clock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_meter_counts_by_hand():
    # Two rows of 16: 10 + 6 tokens and 8 tokens, so 24 of 32 places are used: padding 8 / 32
    docs = [random_doc(10, tiles=1, seed=1), random_doc(6, seed=2), random_doc(8, seed=3)]
    batch = pack([docs[:2], docs[2:]], 16, 0)
    meter = Meter()
    meter.begin_batch()
    meter.end_batch(batch)
    reading = meter.read()
    labelled = 5 + 5 + 7  # of 10 tokens 4 are visual and the last has no successor
    assert reading[2:] == (24, labelled, 32, 1, 3)
    assert reading.padding_share == 0.25
    assert meter.read()[2:] == (0, 0, 0, 0, 0)
    assert meter.read().padding_share == 0.0
    meter.end_batch(batch)
    assert meter.peek()[2:] == meter.peek(lambda counts: counts)[2:] == (24, labelled, 32, 1, 3)


def test_meter_clock_counts_training_and_waiting_for_data_only():
    clock, batch = Clock(), pack([[random_doc(8)]], 8, 0)
    meter = Meter(clock)

    def at(time, event, *args):
        clock.time = time
        event(*args)

    at(10, meter.begin_batch)
    at(12, meter.end_batch, batch)  # 2
    at(13, meter.begin_batch)  # 1 waiting for data
    at(15, meter.end_batch, batch)  # 2
    at(15.5, meter.stop)  # validation: what ran since the batch does not count
    at(40, meter.begin_batch)
    at(41, meter.stop)  # 1; samples are written in the middle of a step
    at(50, meter.resume)
    at(53, meter.end_batch, batch)  # 3
    assert meter.seconds == 2 + 1 + 2 + 1 + 3


def test_paused_stops_running_meters_only():
    clock, first, second = Clock(), Throughput(), Throughput()
    first.meter, second.meter = Meter(clock), Meter(clock)
    first.meter.begin_batch()
    with paused(SimpleNamespace(callbacks=[first, second, L.Callback()])):
        clock.time += 100
    clock.time += 1
    first.meter.end_batch(pack([[random_doc(8)]], 8, 0))
    assert first.meter.seconds == 1
    assert not second.meter.running


def test_throughput_leaves_out_validation_checkpoints_and_samples(fit, tmp_path):
    clock = Clock()

    class Timed(Stage):
        def training_step(self, batch, batch_idx):
            clock.time += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.time += 100
            super().validation_step(batch, batch_idx)

        def generate(self, prompts, **sampling):
            clock.time += 1000
            return super().generate(prompts, **sampling)

        def on_save_checkpoint(self, checkpoint):
            clock.time += 10_000
            super().on_save_checkpoint(checkpoint)

    throughput = Throughput()
    throughput.meter = Meter(clock)
    # before and after: in the first the generation falls between the step and the end of the meter's batch
    tables = [SampleTable(2, 1, 2, [False]) for _ in range(2)]
    run = fit(
        tables[0], throughput, tables[1], ModelCheckpoint(tmp_path, every_n_train_steps=3), steps=5,
        stage=Timed(tiny_vlm()), val=SAMPLES[:2], val_check_interval=2, enable_checkpointing=True,
    )  # fmt: skip
    assert clock.time > 10_000 + 2 * 2 * 1000 + 2 * 100
    assert run.recorder.column(names.STEP_SECONDS) == [1.0] * 5
    rows = [row for _, row in run.recorder.rows if names.TOKENS_PER_SECOND in row]
    tokens = [row[names.TOKENS_PER_SECOND] for row in rows]  # one second each
    assert [row[names.TOKENS_SEEN] for row in rows] == [sum(tokens[: n + 1]) for n in range(5)]
    assert [row[names.PADDING_SHARE] for row in rows] == pytest.approx([1 - count / 96 for count in tokens])


def test_throughput_is_one_row_with_the_loss(fit):
    run = fit(Throughput(), GradNorms(), steps=4, log_every_n_steps=2)
    expected = {
        names.TOKENS_PER_SECOND, names.LABELLED_PER_SECOND, names.TILES_PER_SECOND, names.STEP_SECONDS,
        names.PADDING_SHARE, names.TOKENS_SEEN, names.SAMPLES_SEEN, names.norm("grad", "vision"), "train/loss",
    }  # fmt: skip
    assert [step for step, _ in run.recorder.rows] == [1, 3]
    assert all(expected <= set(metrics) for _, metrics in run.recorder.rows)
    each = fit(Throughput(), steps=4)
    assert run.recorder.column(names.TOKENS_SEEN) == each.recorder.column(names.TOKENS_SEEN)[1::2]


def test_totals_go_on_after_a_resume(fit, tmp_path):
    whole = fit(Throughput(), steps=6)
    # the checkpoint of step 3 lies between two logging steps: what was not read yet must be in it
    save = ModelCheckpoint(tmp_path, filename="at3", every_n_train_steps=3)
    throughput = Throughput()
    fit(throughput, save, steps=3, enable_checkpointing=True, log_every_n_steps=2)
    resumed = fit(throughput, steps=6, ckpt_path=str(tmp_path / "at3.ckpt"))  # the same one: it must not count twice
    for name in (names.TOKENS_SEEN, names.SAMPLES_SEEN):
        assert resumed.recorder.column(name) == whole.recorder.column(name)[3:]
    assert whole.recorder.column(names.TOKENS_SEEN)[-1] > 6 * 48


def test_totals_are_exact_where_float32_would_round(fit):
    throughput = Throughput()
    throughput.load_state_dict({"tokens": 2**40 + 1, "samples": 0})
    run = fit(throughput, steps=1)
    assert run.recorder.column(names.TOKENS_SEEN) == [throughput.state_dict()["tokens"]]
    assert throughput.state_dict()["tokens"] % 2**17  # the step of float32 there


def test_throughput_counts_each_micro_batch(fit):
    once = fit(Throughput(), steps=4)
    twice = fit(Throughput(), steps=2, accumulate_grad_batches=2)
    assert twice.recorder.column(names.TOKENS_SEEN) == once.recorder.column(names.TOKENS_SEEN)[1::2]


# ---------------------------------------------------------------------- first batch
def test_first_batch_is_shown_once(fit, tmp_path, capsys):
    preview = BatchPreview()
    run = fit(preview, steps=3)
    out = capsys.readouterr().out
    text = (tmp_path / "first_batch.txt").read_text()
    assert out.count("first batch") == 1
    assert text in out
    assert "«yes" in text  # the answer carries loss
    assert "\x1b" not in text
    fit(preview, steps=1, stage=run.stage)
    assert "first batch" not in capsys.readouterr().out


def test_first_batch_is_coloured_in_a_terminal_and_cut(fit, tmp_path, screen):
    terminal = screen()
    fit(BatchPreview(max_chars=30), steps=1)
    shown = terminal.getvalue().split("first_batch.txt:\n")[1]
    assert len(shown) == len(" ...\x1b[0m\n") + 30 < len((tmp_path / "first_batch.txt").read_text())
    assert "\x1b[90m" in shown


def test_control_characters_of_the_data_do_not_reach_the_terminal():
    text = "\x1b[32mgreen\x1b[0m\ttab\n \x1b]0;title\x07 \x1b[2J \x9b1m \r"
    assert _CONTROL.sub("?", text) == "\x1b[32mgreen\x1b[0m\ttab\n ?]0;title? ?[2J ?1m ?"


# ---------------------------------------------------------------------- samples
EVIL = "<script>alert(1)</script> & \"quoted\" <image> '</pre>"


def row(**fields):
    default = SampleRow(5, "a", "s", "", "thinking", "p", "r", None, None, "t", num_tokens=3, finished=False)
    return replace(default, **fields)


def test_page_escapes_every_text():
    fields = ("id", "source", "task", "mode", "prompt", "reference", "answer", "thinking", "text")
    page = render([row(**dict.fromkeys(fields, EVIL)), row(text=EVIL)], EVIL)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2 + 8 + 1  # title twice; all but `text`, which an answer replaces; `text`
    assert "default-src 'none'" in page  # and nothing could run


def test_page_shows_a_sample_once_with_its_modes():
    picture = thumbnail(png(20, 30))
    rows = [row(mode="non_thinking", answer="4", finished=True, images=[picture]), row(images=[picture], text="cut he")]
    page = render([rows[0], row(id="b"), rows[1]], "t")
    assert page.count("<article>") == 2
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.index("non_thinking: 3 tokens<") < page.index("thinking: 3 tokens, cut at the limit")
    assert rows[0].record()["images"] == 1


def test_pictures_shrink_lie_on_white_and_join_side_by_side():
    out = io.BytesIO()
    Image.new("RGBA", (800, 400), (0, 0, 0, 0)).save(out, "PNG")
    small = thumbnail(out.getvalue(), side=100)
    joined = strip([small, thumbnail(png(20, 30))])
    assert (joined.width, joined.height) == (130, 50)
    assert joined.getpixel((50, 25)) == (255, 255, 255)
    assert joined.crop((100, 0, 130, 20)).getextrema()[0][0] < 100  # the second is beside the first
    assert strip([]) is None


def test_sample_table_writes_both_modes_into_the_run_folder(fit, tmp_path):
    val = [question(EVIL.replace("<image>", ""), "yes", images=1, id="evil"), question(id="plain", answer="no")]
    fit(SampleTable(every_n_steps=2, count=2, max_new_tokens=3), steps=5, val=val, limit_val_batches=0)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        f"step-00000{n}.{end}" for n in (2, 4) for end in ("html", "jsonl")
    ]
    rows = [json.loads(line) for line in (tmp_path / "samples" / "step-000002.jsonl").read_text().splitlines()]
    got = [(r["id"], r["mode"], r["images"], r["reference"], r["source"]) for r in rows]
    assert got == [
        (name, mode, images, reference, "held_out")
        for mode in ("non_thinking", "thinking")
        for name, images, reference in (("evil", 1, "yes"), ("plain", 0, "no"))
    ]
    assert all(r["num_tokens"] <= 3 and r["step"] == 2 for r in rows)
    page = (tmp_path / "samples" / "step-000002.html").read_text()
    assert "<script" not in page
    assert page.count("<img") == 1


def test_sample_table_leaves_training_as_it_was(fit, tmp_path):
    class Dropout(Stage):
        """Draws from the global random state in every step."""

        def training_step(self, batch, batch_idx):
            self.drawn.append(torch.rand(()).item())
            return super().training_step(batch, batch_idx)

        def generate(self, prompts, **sampling):
            torch.rand(3)  # as a generator of a user's own might
            assert not torch.is_grad_enabled()
            return super().generate(prompts, **sampling)

    def run(*callbacks, folder):
        stage = Dropout(tiny_vlm(), AdamW(lr=1e-2))
        stage.drawn = []
        fit(*callbacks, steps=4, stage=stage, folder=tmp_path / folder)
        return stage

    with_table, without = run(SampleTable(1, 2, 3), folder="a"), run(folder="b")
    assert with_table.drawn == without.drawn
    for (name, one), two in zip(with_table.named_parameters(), without.parameters()):
        assert torch.equal(one, two), name


def test_sample_table_counts_optimizer_steps(fit, monkeypatch):
    asked = []
    generate = SampleTable._generate
    monkeypatch.setattr(SampleTable, "_generate", lambda *args: asked.append(args[1].global_step) or generate(*args))
    fit(SampleTable(every_n_steps=2, count=1, max_new_tokens=1, thinking=[True]), steps=4, accumulate_grad_batches=2)
    assert asked == [2, 4]  # not once for each micro-batch


def test_undisturbed_restores_random_state_and_every_mode():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Linear(1, 1)))
    module[1].eval()  # a frozen part
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    with undisturbed(module):
        torch.rand(5)
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(OSError, match="no"), undisturbed(module):
        raise OSError("no")
    assert [part.training for part in module.modules()] == modes


def test_sample_table_warns_once_without_prompts_or_with_sharded_weights(fit, tmp_path):
    texts = [Sample(f"t{n}", "tiny", text="a red circle") for n in range(4)]
    with pytest.warns(UserWarning, match="no conversation to prompt with") as caught:
        fit(SampleTable(every_n_steps=1), steps=3, samples=texts)
    assert len([w for w in caught if "no conversation" in str(w.message)]) == 1
    assert not (tmp_path / "samples").exists()
    table = SampleTable()
    with pytest.warns(UserWarning, match="FSDPStrategy shards the weights, not supported yet"):
        table.on_train_start(SimpleNamespace(global_step=0, strategy=FSDPStrategy()), None)
    table.on_train_batch_end(SimpleNamespace(global_step=500), None)  # does nothing, or would fail here


@pytest.mark.parametrize("key", ["every_n_steps", "count", "max_new_tokens"])
def test_sample_table_refuses_numbers_below_one(key):
    with pytest.raises(ConfigError, match=f"{key}: 0 is below 1"):
        SampleTable(**{key: 0})


def test_wandb_gets_the_table_with_pictures(fit, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import WandbLogger

    settings = {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DATA_DIR": str(tmp_path)}
    for key, value in settings.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    logger, logged = WandbLogger(project="test", save_dir=tmp_path), []
    log = logger.log_metrics

    def spy(metrics, step):
        logged.append((step, names.SAMPLES in metrics))
        log(metrics, step)

    monkeypatch.setattr(logger, "log_metrics", spy)
    val = [question("plain", id="b"), question("picture", images=2, id="a")]
    try:
        fit(SampleTable(2, 2, 2), Throughput(), steps=2, val=val, limit_val_batches=0, logger=logger)
        summary = dict(logger.experiment.summary)
    finally:
        logger.experiment.finish()
    assert logged[1:] == [(1, True), (1, False)]  # the table lies on the step of the loss
    assert summary[names.SAMPLES]["nrows"] == 4
    path = next(tmp_path.rglob("*.table.json"))
    table = json.loads(path.read_text())
    cells = [dict(zip(table["columns"], values)) for values in table["data"]]
    assert [(c["id"], c["mode"]) for c in cells] == [
        (name, mode) for mode in ("non_thinking", "thinking") for name in ("b", "a")
    ]
    assert [c["image"] for c in cells] == [None, "Image"] * 2
    # W&B keeps the pictures of a table outside the run folder, in WANDB_DATA_DIR, until they are uploaded
    staged = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    pictures = [Image.open(path) for path in staged if path.read_bytes().startswith(b"\x89PNG")]
    assert {picture.size for picture in pictures} == {(32, 16)}  # two pictures side by side


# ---------------------------------------------------------------------- norms
def test_components_are_the_innermost_modules_that_train():
    stage = Stage(tiny_vlm(), frozen=["vlm.vision.*"])
    groups = components(stage)
    assert list(groups) == ["projector", "decoder"]
    assert sum(map(len, groups.values())) == sum(p.requires_grad for p in stage.parameters())
    stage.temperature = torch.nn.Parameter(torch.ones(()))
    stage.teacher = tiny_vlm()
    assert list(components(stage)) == [
        "vlm.projector", "vlm.decoder", "teacher.vision", "teacher.projector", "teacher.decoder", "other"
    ]  # fmt: skip


def test_norms_equal_a_computation_by_hand(fit):
    class Looking(Stage):
        """After a step the gradients are still there, clipped: so no clipping here."""

        seen = None

        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 2:
                parts = {"vision": self.vlm.vision, "decoder": self.vlm.decoder}
                self.seen = {
                    f"norm/{kind}/{name}": sum(
                        float((p.grad if kind == "grad" else p.detach()).double().square().sum())
                        for p in part.parameters() if p.grad is not None
                    ) ** 0.5
                    for name, part in parts.items() for kind in ("grad", "param")
                }  # fmt: skip

    stage = Looking(tiny_vlm(), AdamW(lr=1e-2), frozen=["vlm.projector.*"])
    run = fit(GradNorms(), steps=3, stage=stage)
    logged = dict(run.recorder.rows)[2]
    assert {key: logged[key] for key in stage.seen} == pytest.approx(stage.seen, rel=1e-5)  # worst case 2e-7
    assert not [key for key in logged if key.endswith("/projector")]
    assert l2_norm([torch.tensor([3.0]), torch.tensor([[4.0]], dtype=torch.bfloat16)]) == 5


def test_norms_are_measured_every_n_steps_on_logging_steps(fit, monkeypatch):
    measured = []
    callback = GradNorms(every_n_steps=4)
    monkeypatch.setattr("bluelm_lightning.callbacks.monitors.l2_norm", lambda t: measured.append(1) or torch.ones(()))
    run = fit(callback, steps=9, log_every_n_steps=2)
    # steps 4 and 8; six norms each, three components with gradients and parameters
    assert len(measured) == 2 * 6
    assert [step for step, row in run.recorder.rows if "norm/grad/vision" in row] == [3, 5, 7]  # Lightning repeats
    with pytest.raises(ConfigError, match="every_n_steps: 0 is below 1"):
        GradNorms(every_n_steps=0)


# ---------------------------------------------------------------------- NaN
class Poisoned(Stage):
    """The loss of one batch is not finite."""

    def __init__(self, at, value=float("nan")):
        super().__init__(tiny_vlm(), AdamW(lr=1e-2))
        self.at, self.value, self.before, self.ids = at, value, None, None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx != self.at:
            return loss
        self.before, self.ids = [p.detach().clone() for p in self.parameters()], batch.sample_ids
        return loss * self.value


def test_nan_stops_before_the_weights_change_and_keeps_the_checkpoint(fit, tmp_path):
    stage = Poisoned(at=2)
    save = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(TrainingStopped) as caught:
        fit(StopOnNaN(), save, stage=stage, enable_checkpointing=True)
    message = str(caught.value)
    assert message.startswith(f"step 3: loss is nan (process 0), samples {', '.join(stage.ids)}; weights")
    assert "\n" not in message
    assert all(torch.equal(p, old) for p, old in zip(stage.parameters(), stage.before))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.equal(saved["state_dict"][name], p) for name, p in stage.named_parameters())
    report = json.loads((tmp_path / "stopped-rank0.json").read_text())
    assert report == {"step": 3, "losses": ["nan"], "samples": stage.ids}


def test_plain_lightning_goes_on_with_nan_weights(fit):
    """Why StopOnNaN is there; once Lightning stops by itself, it can go."""
    stage = fit(stage=Poisoned(at=2)).stage
    assert any(p.isnan().any() for p in stage.parameters())


def test_nan_names_the_micro_batch_it_came_from(fit):
    stage = Poisoned(at=3, value=float("inf"))
    with pytest.raises(TrainingStopped, match="step 2: loss is inf") as caught:
        fit(StopOnNaN(), stage=stage, accumulate_grad_batches=2)
    assert f"samples {', '.join(stage.ids)}; " in str(caught.value)


def test_gradients_that_are_not_finite_stop_too(fit):
    class Exploding(Poisoned):
        def training_step(self, batch, batch_idx):
            loss = Stage.training_step(self, batch, batch_idx)
            if batch_idx == self.at:
                self.vlm.projector.requires_grad_(True)
                loss.register_hook(lambda grad: grad * float("inf"))
            return loss

    with pytest.raises(TrainingStopped, match=r"step 2: loss is \d\.\d+ but a gradient is not finite"):
        fit(StopOnNaN(), stage=Exploding(at=1), steps=3)
    assert fit(StopOnNaN(gradients=False), stage=Exploding(at=1), steps=2).trainer.global_step == 2


def test_many_samples_are_cut_in_the_line_but_not_in_the_file(fit, tmp_path):
    short = [Sample(f"n{n}", "tiny", text="no") for n in range(60)]
    with pytest.raises(TrainingStopped, match=r"and \d+ more; ") as caught:
        fit(StopOnNaN(), stage=Poisoned(at=0), samples=short)
    named = str(caught.value).split("samples ")[1].split(" and ")[0].split(", ")
    everything = json.loads((tmp_path / "stopped-rank0.json").read_text())["samples"]
    assert named == everything[:16]
    assert len(everything) > 16


# ---------------------------------------------------------------------- all together
TWO = """
import sys
from pathlib import Path
from test_callbacks import *

folder, tokenizer = Path(sys.argv[1]), sys.argv[2]

class OnRank1(Poisoned):
    tokens = 0

    def training_step(self, batch, batch_idx):
        self.tokens += batch.num_tokens
        if self.global_rank == 0:
            self.at = -1
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        seen = int(self.trainer.callback_metrics[names.TOKENS_SEEN])
        (folder / f"{self.global_rank}-{batch_idx}.json").write_text(json.dumps([self.tokens, seen]))

data = MultimodalDataModule(tokenizer, [SourceSpec(source=SAMPLES)], row_tokens=48, batch_rows=2, num_workers=0)
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp_fork", max_steps=4, logger=False, default_root_dir=folder,
    callbacks=[Throughput(), StopOnNaN(gradients=False), SampleTable(1, 1, 2, [False])], enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
)
trainer.fit(OnRank1(at=2), data)
"""


def test_two_processes_count_together_and_stop_together(tmp_path, tokenizer_folder):
    """Rank 1 meets a NaN: both processes end, none waits. Tokens seen are the sum over both."""
    done = subprocess.run(
        [sys.executable, "-c", TWO, tmp_path, tokenizer_folder],
        capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "TrainingStopped: step 3: loss is" in done.stderr, done.stderr[-2000:]
    assert json.loads((tmp_path / "stopped-rank1.json").read_text())["losses"] == ["nan"]
    assert json.loads((tmp_path / "stopped-rank0.json").read_text())["step"] == 3
    assert (tmp_path / "samples" / "step-000002.jsonl").exists()
    for batch in (0, 1):
        (first, seen), (second, also) = (json.loads((tmp_path / f"{r}-{batch}.json").read_text()) for r in (0, 1))
        assert seen == also == first + second


def test_all_callbacks_together(fit, tmp_path, capsys):
    callbacks = [TrainingProgress(), Throughput(), BatchPreview(), SampleTable(2, 1, 2), GradNorms(), StopOnNaN()]
    run = fit(*callbacks, steps=4, val=SAMPLES[:2], val_check_interval=2)
    assert run.trainer.global_step == 4
    assert "step 4/4  loss" in capsys.readouterr().out
