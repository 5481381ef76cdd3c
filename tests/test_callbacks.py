"""Callbacks on a real tiny stage and a real data module: first batch, norms, NaN, and all together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callback_runs import SAMPLES
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import rendezvous
from tiny import tiny_vlm

from bluelm_lightning.callbacks import (
    BatchPreview,
    GradNorms,
    SampleTable,
    StopOnNaN,
    Throughput,
    TrainingProgress,
    TrainingStopped,
)
from bluelm_lightning.callbacks.monitors import components, l2_norm, state_of
from bluelm_lightning.callbacks.preview import _CONTROL
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.types import Sample

pytest_plugins = ["callback_runs"]


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


def test_norms_of_the_optimizer_state_are_those_of_its_tensors(fit):
    run = fit(GradNorms(optimizer_state=True), steps=3)
    assert {"norm/exp_avg/decoder", "norm/exp_avg_sq/vision"} <= set(dict(run.recorder.rows)[2])
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.tensor([1.0, 2.0, 2.0])
    optimizer.step()
    held = state_of(optimizer, [parameter])
    assert set(held) == {"exp_avg", "exp_avg_sq"}
    assert float(l2_norm(held["exp_avg"])) == pytest.approx(0.3)  # (1 - 0.9) * 3


def test_norms_of_the_updates_are_those_of_a_known_step(fit):
    """Plain gradient descent moves by the rate times the gradient, plus decay of the weights."""

    class Descent(AdamW):
        def build(self, stage):
            return torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.25, weight_decay=0.5)

    class Looking(Stage):
        seen, gradients = (), ()

        def configure_gradient_clipping(self, *args, **kwargs):
            super().configure_gradient_clipping(*args, **kwargs)  # divides the sums of micro-batches
            self.gradients = [*self.gradients, float(l2_norm([p.grad for p in self.vlm.decoder.parameters()]))]
            moved = [0.25 * (p.grad + 0.5 * p).detach().double() for p in self.vlm.decoder.parameters()]
            self.seen = [*self.seen, sum(float(m.square().sum()) for m in moved) ** 0.5]

    stage = Looking(tiny_vlm(), Descent(), frozen=["vlm.projector.*"], clip_norm=0.0)
    callback = GradNorms(updates=True)
    run = fit(callback, steps=4, stage=stage, log_every_n_steps=2, accumulate_grad_batches=2)
    rows = [row for _, row in run.recorder.rows if "norm/update/decoder" in row]
    found = [row["norm/update/decoder"] for row in rows]
    # the steps 2 and 4; the difference of two float32 weights rounds: worst case 2e-8
    assert found == pytest.approx(stage.seen[1::2], rel=1e-6)
    # gradients as of the step, though they are divided only after they were looked at: worst case 2e-7
    assert [row["norm/grad/decoder"] for row in rows] == pytest.approx(stage.gradients[1::2], rel=1e-5)
    assert "norm/update/vision" in rows[0]
    assert "norm/update/projector" not in rows[0]
    assert not callback._before
    assert not any("update" in key for key in dict(fit(GradNorms(), steps=1).recorder.rows)[0])


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
import json
import sys
from pathlib import Path

import lightning as L
from callback_runs import SAMPLES
from test_callbacks import Poisoned

from bluelm_lightning.callbacks import SampleTable, StopOnNaN, Throughput, names
from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.sources import SourceSpec

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
    env = {**os.environ, **rendezvous(), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", TWO, tmp_path, tokenizer_folder],
        capture_output=True, text=True, timeout=200, env=env,
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
