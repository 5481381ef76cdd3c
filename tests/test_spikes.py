"""Steps whose loss jumps are skipped without a trace, and a loss that has moved for good is not skipped forever."""

import pytest
import torch
from test_stage import DOCS, fit, pack
from tiny import tiny_vlm

from bluelm_lightning.callbacks import LossSpikes
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


def run(folder, spikes, steps=10, accumulate=1, **options):
    stage = Scaled(tiny_vlm(), AdamW(lr=1e-3))
    stage.spikes = spikes
    made = Weights(**{"window": 4, **options})
    fit(folder, stage, [pack([DOCS[:2]], 64, 0)] * steps, callbacks=[made], accumulate_grad_batches=accumulate)
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
