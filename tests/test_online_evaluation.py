"""OnlineEvaluation: right answers by task and mode, on one process and two, and a training that does not notice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import rendezvous
from tiny import question, tiny_vlm

from bluelm_lightning.callbacks import OnlineEvaluation
from bluelm_lightning.data.scoring import is_right, spread_prompts
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.types import Generation, Sample

pytest_plugins = ["callback_runs"]

HELD_OUT = [question(f"what is {n}?", "4", id=f"v{n}", task=["sums", "shapes"][n % 2]) for n in range(4)]


def made(answer: str | None) -> Generation:
    return Generation([1, 2], str(answer), None, answer, 2, True)


class Says4(Stage):
    """Its answer is always 4 without thinking, and for every other prompt with it."""

    def generate(self, prompts, **sampling):
        torch.rand(3)  # as a generator of a user's own might
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked = [*getattr(self, "asked", []), len(prompts)]
        thinking = len(self.asked) % 2 == 0
        return [made("4" if not thinking or n % 2 else None) for n in range(len(prompts))]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_accuracy_by_task_and_mode_once_a_measurement(fit, tmp_path):
    saver = ModelCheckpoint(tmp_path, monitor="eval/accuracy/shapes/thinking", every_n_train_steps=2)
    options = {"val": HELD_OUT, "limit_val_batches": 0, "log_every_n_steps": 3, "enable_checkpointing": True}
    run = fit(OnlineEvaluation(2, 4, 9), saver, steps=9, stage=Says4(tiny_vlm()), accumulate_grad_batches=2, **options)
    assert run.stage.asked == [4, 4] * 4
    wanted = {"shapes/non_thinking": 1.0, "sums/non_thinking": 1.0, "shapes/thinking": 1.0, "sums/thinking": 0.0}
    rows = [(step, row) for step, row in run.recorder.rows if "eval/accuracy/sums/thinking" in row]
    assert [step for step, _ in rows] == [1, 3, 5, 7]  # steps 2, 4, 6, 8, each once, whatever the logging steps
    assert all(row == {f"eval/accuracy/{name}": value for name, value in wanted.items()} for _, row in rows)
    assert saver.best_model_score == 1.0
    found = lines(tmp_path)
    assert [row["step"] for row in found] == [n for n in (2, 4, 6, 8) for _ in range(4)]
    first = {"step": 2, "task": "shapes", "mode": "non_thinking", "accuracy": 1.0, "n": 2, "mean_tokens": 2.0}
    assert found[0] == first


def test_a_resume_writes_no_measurement_twice(fit, tmp_path):
    """Four steps, of which the checkpoint holds three; the last line was being written when the run was killed."""
    options = {"val": HELD_OUT, "limit_val_batches": 0, "enable_checkpointing": True}
    saver = ModelCheckpoint(tmp_path, "early", every_n_train_steps=3, save_top_k=-1)
    fit(OnlineEvaluation(1, 4, 9), saver, steps=4, stage=Says4(tiny_vlm()), **options)
    first = (tmp_path / "evaluations.jsonl").read_text()
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 3, "ta')
    fit(OnlineEvaluation(1, 4, 9), steps=4, stage=Says4(tiny_vlm()), ckpt_path=tmp_path / "early.ckpt", **options)
    assert (tmp_path / "evaluations.jsonl").read_text() == first
    fit(OnlineEvaluation(1, 4, 9), steps=1, stage=Says4(tiny_vlm()), **options)
    assert [row["step"] for row in lines(tmp_path)] == [n for n in (1, 2, 3, 4, 1) for _ in range(4)], "no resume"


def test_losses_are_bit_equal_with_and_without_it(fit, tmp_path):
    class Noting(Stage):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.losses.append((float(loss).hex(), self.training, float(torch.rand(()))))
            return loss

        def generate(self, prompts, **sampling):
            torch.rand(3)  # as a generator of a user's own might
            return super().generate(prompts, **sampling)

    def run(*callbacks, folder):
        stage = Noting(tiny_vlm(config={"attention_dropout": 0.3}), AdamW(lr=1e-2))
        stage.losses = []
        fit(*callbacks, steps=6, stage=stage.train(), val=HELD_OUT, folder=tmp_path / folder)
        return stage.losses

    with_it, without = run(OnlineEvaluation(1, 4, 5), folder="a"), run(folder="b")
    assert with_it == without
    assert len({loss for loss, *_ in with_it}) == 6
    assert len(lines(tmp_path / "a")) == 6 * 4


def test_prompts_are_spread_over_sources_and_tasks():
    def asked(*sources, count):
        return [sample.id for sample, _ in spread_prompts(sources, count, lambda sample: sample)]

    first, second = [question(id=f"a{n}") for n in range(10)], [question(id="b0")]
    assert asked(first, second, count=5) == ["a0", "a3", "a6", "b0"]
    texts = [Sample(f"t{n}", "s", text="no question") for n in range(30)]
    assert asked(texts, first, count=2) == ["a0", "a5"], "a source of texts takes no places"
    assert asked(texts, count=9) == []
    assert is_right(question(answer="Yes"), made("yes."))
    bare = Sample("x", "s", [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}])
    assert is_right(bare, made("No"))
    assert not is_right(bare, made(None))


def test_a_sample_that_cannot_be_read_is_passed_over(caplog):
    def encode(sample):
        if sample.id == "a5":
            raise DataError("image 0 is no picture", sample.id)
        return sample

    class Damaged(list):
        def __getitem__(self, index):
            if index == 0:
                raise DataError("is cut", "a.tar")
            return super().__getitem__(index)

    source = Damaged(question(id=f"a{n}") for n in range(10))
    assert [sample.id for sample, _ in spread_prompts([source], 4, encode)] == ["a2", "a7"]
    assert "a.tar: is cut" in caplog.text
    assert "a5: image 0 is no picture" in caplog.text


def test_nothing_to_ask_and_nonsense_are_refused(fit):
    with pytest.raises(ConfigError, match="val_sources: hold no conversation"):
        fit(OnlineEvaluation(2), val=[Sample("t", "s", text="the sum is 12")])
    with pytest.raises(ConfigError, match="count: 0 is below 1"):
        OnlineEvaluation(count=0)


TWO = """
import sys
from pathlib import Path
import lightning as L
import torch
from callback_runs import SAMPLES
from test_online_evaluation import HELD_OUT
from tiny import tiny_vlm
from bluelm_lightning.callbacks import OnlineEvaluation
from bluelm_lightning.datamodules.base import MultimodalDataModule, SourceSpec
from bluelm_lightning.stages.base import Stage
torch.set_num_threads(1)
class Noting(L.Callback):
    def on_train_batch_end(self, trainer, stage, *args):
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if "eval/" in name}
        (Path(sys.argv[1]) / f"rank{trainer.global_rank}.txt").write_text(repr(sorted(found.items())))
sources = [SourceSpec(source=SAMPLES)], [SourceSpec(source=HELD_OUT)]
data = MultimodalDataModule(sys.argv[2], *sources, row_tokens=48, batch_rows=2, num_workers=0)
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp_fork", max_steps=4, logger=False, default_root_dir=sys.argv[1],
    callbacks=[OnlineEvaluation(2, 4, 4), Noting()], enable_checkpointing=False, limit_val_batches=0,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
)
trainer.fit(Stage(tiny_vlm()), data)
"""


def test_two_processes_measure_alike_and_write_once(tmp_path, tokenizer_folder):
    env = {**os.environ, **rendezvous(), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", TWO, tmp_path, tokenizer_folder],
        capture_output=True, text=True, timeout=120, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in lines(tmp_path)] == [2] * 4 + [4] * 4
    told = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "sums/thinking" in told[0]
