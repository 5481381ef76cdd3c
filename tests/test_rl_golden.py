"""Every algorithm: it learns a small task, and twenty seeded steps give the losses that are stored.

A change of the numbers is a commit of its own, with the reason: ``python tests/test_rl_golden.py`` writes them anew.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import pytest
import torch
from rl_runs import ALGORITHMS, data_of, fit

from bluelm_lightning.stages import AdamW

GOLDEN = Path(__file__).parent / "golden" / "rl.json"


class Losses(L.Callback):
    def __init__(self):
        self.losses, self.rewards = [], []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.losses.append(round(float(outputs["loss"].detach()), 6))
        self.rewards.append(float(trainer.callback_metrics["reward/low/mean"]))


def run(name: str, folder: Path, steps: int, **options) -> Losses:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    losses = Losses()
    fit(ALGORITHMS[name](**options), data_of(folder), folder, steps, losses)
    return losses


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_gives_the_stored_losses_and_learns_what_is_rewarded(name, tmp_path):
    stored = json.loads(GOLDEN.read_text())[name]
    found = run(name, tmp_path / "golden", 20)
    assert found.losses == pytest.approx(stored, abs=2e-5)  # equal on one machine; another may round differently
    learnt = run(name, tmp_path / "learns", 40, optimizer=AdamW(lr=5e-3)).rewards
    assert sum(learnt[-5:]) / 5 > sum(learnt[:5]) / 5 + 0.3


def write() -> None:
    with TemporaryDirectory() as folder:
        golden = {name: run(name, Path(folder) / name, 20).losses for name in ALGORITHMS}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write()
