"""Steps whose loss jumps are skipped without a trace, and a loss that has moved for good is not skipped forever."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from test_stage import DOCS, fit, pack
from tiny import tiny_vlm

from bluelm_lightning.callbacks import LossSpikes, StopOnNaN, TrainingStopped
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages import AdamW, SFTStage


class Scaled(SFTStage):
    """The loss of chosen steps is a hundred times as large."""

    spikes: tuple[int, ...] = ()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (100 if batch_idx in self.spikes else 1)


class Weights(LossSpikes):
    """Keeps a weight and the optimizer's count after each step."""

    def on_train_start(self, trainer, stage):
        self.seen = []

    def on_train_batch_end(self, trainer, stage, *args):
        state = trainer.optimizers[0].state[stage.vlm.decoder.output_weight]
        self.seen.append((stage.vlm.decoder.output_weight.detach().clone(), float(state.get("step", 0))))


def run(folder, spikes, steps=10, accumulate=1, plugins=None, **options):
    stage = Scaled(tiny_vlm(), AdamW(lr=1e-3, fused=plugins is None))
    stage.spikes = spikes
    made = Weights(**{"window": 4, **options})
    batches = [pack([DOCS[:2]], 64, 0)] * steps
    fit(folder, stage, batches, callbacks=[made], accumulate_grad_batches=accumulate, plugins=plugins)
    return made


def test_a_spike_changes_no_weight_and_no_state(tmp_path):
    with pytest.warns(UserWarning, match=r"step 7: loss .* is above .*, the step is skipped"):
        made = run(tmp_path, (6,))
    weights, counts = zip(*made.seen)
    assert torch.equal(weights[6], weights[5])
    assert not torch.equal(weights[7], weights[6])
    assert counts == (1, 2, 3, 4, 5, 6, 6, 7, 8, 9)
    assert made.skipped == 1
    assert run(tmp_path, (2,)).skipped == 0  # the window is not full
    assert run(tmp_path, (12,), 20, accumulate=2).skipped == 1


def test_a_step_of_more_tokens_is_no_spike(tmp_path):
    """With accumulation the loss of a micro-batch is a sum: here the last step has twelve times the labelled tokens."""
    few, many = pack([[DOCS[0]]], 30, 0), pack([DOCS[:1] * 12], 360, 0)
    made, stage = Weights(window=4), SFTStage(tiny_vlm(), AdamW(lr=0.0))
    fit(tmp_path, stage, [few, few] * 5 + [many, many], callbacks=[made], accumulate_grad_batches=2)
    assert made.skipped == 0
    assert made.recent[-1] == pytest.approx(made.recent[0], rel=1e-5)
    assert made.recent[0] == pytest.approx(5.8, rel=0.1)  # nats a token: log 320


def test_losses_are_those_before_a_gradient_scaler(tmp_path):
    """Its scale doubles every two steps, which is no spike; one that is leaves no trace."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    with pytest.warns(UserWarning, match="step 9: loss .* the step is skipped"):
        made = run(tmp_path, (8,), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() > 256
    assert made.skipped == 1
    assert all(4 < loss < 6 for loss in made.recent)  # nats
    assert torch.equal(made.seen[8][0], made.seen[7][0])
    assert made.seen[9][1] == 9


def test_a_loss_that_is_not_finite_never_enters_the_window(tmp_path):
    class Broken(Scaled):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx in (1, 6, 7, 8) else 1)

    made, stage = Weights(window=3, patience=2), Broken(tiny_vlm(), AdamW(lr=1e-3))
    with pytest.warns(UserWarning, match="step 2: loss nan is not finite, the step is skipped"):
        fit(tmp_path, stage, [pack([DOCS[:2]], 64, 0)] * 10, callbacks=[made])
    assert made.skipped == 4
    assert all(0 < loss < 10 for loss in made.recent)
    assert all(bool(torch.isfinite(p).all()) for p in stage.parameters())


def test_a_step_that_is_skipped_does_not_stop_the_run(tmp_path):
    """`bluelm-fit` adds StopOnNaN behind the callbacks of the settings."""

    class Broken(Scaled):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 1 else 1)

    spikes, batches = LossSpikes(window=3), [pack([DOCS[:2]], 64, 0)] * 4
    with pytest.warns(UserWarning, match="step 2: loss nan is not finite, the step is skipped"):
        fit(tmp_path, Broken(tiny_vlm(), AdamW(lr=1e-3)), batches, callbacks=[spikes, StopOnNaN()])
    assert spikes.skipped == 1
    with pytest.raises(TrainingStopped, match="step 2"):
        fit(tmp_path, Broken(tiny_vlm(), AdamW(lr=1e-3)), batches, callbacks=[StopOnNaN()])


def test_a_loss_that_has_moved_is_followed_in_the_end(tmp_path):
    made = run(tmp_path, tuple(range(5, 12)), 12, patience=3)
    assert made.skipped == 3
    assert [count for _, count in made.seen][-4:] == [6, 7, 8, 9]


def test_its_state_survives_and_nonsense_is_refused():
    made = LossSpikes(window=3)
    for loss in (1.0, 1.1, 0.9):
        made.recent.append(loss)
    assert made.threshold() == pytest.approx(1.0 + 8 * 1.4826 * 0.1)
    again = LossSpikes(window=3)
    again.load_state_dict(made.state_dict())
    assert again.threshold() == made.threshold()
    with pytest.raises(ConfigError, match="LossSpikes"):
        LossSpikes(window=1)
