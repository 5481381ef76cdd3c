"""SampleTable: files, page, W&B, and a training that does not notice."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from tiny import png, question, tiny_vlm

from bluelm_lightning.callbacks import (
    SampleTable,
    Throughput,
    names,
)
from bluelm_lightning.callbacks.sample_page import SampleRow, render, strip, thumbnail
from bluelm_lightning.callbacks.samples import undisturbed
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.types import Sample

pytest_plugins = ["callback_runs"]


EVIL = '<script>alert(1)</script> & "quoted" <image> \'</pre>'


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
