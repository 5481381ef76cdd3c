"""Run by test_stage.py, ``python two_processes.py FOLDER``: one step on two CPU processes, a checkpoint, a resume."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from test_stage import DOCS, Recorder, loader, pack, tiny_vlm, trainer_of  # noqa: E402

from bluelm_lightning.callbacks import GradNorms, LossSpikes  # noqa: E402
from bluelm_lightning.stages import SFTStage  # noqa: E402

SPIKES = LossSpikes()
FOLDER = Path(sys.argv[1])
SHARES = [[[DOCS[0]], [DOCS[2]]], [[DOCS[1]], [DOCS[3]]]]  # rank -> micro-batches; rank 1 has no image, few labels


class Checkpoint(L.Callback):
    def on_train_end(self, trainer, stage):
        if trainer.is_global_zero:
            torch.save({**trainer.callback_metrics, "loss": SPIKES.recent[0]}, FOLDER / "seen.pt")
        torch.manual_seed(100 + trainer.global_rank)
        trainer.save_checkpoint(FOLDER / "two.ckpt")


class Note(L.Callback):
    """The random state in the first batch after the resume."""

    def on_before_zero_grad(self, trainer, stage, optimizer):
        torch.save(torch.get_rng_state(), FOLDER / f"rank{trainer.global_rank}.pt")
        trainer.should_stop = True


class Shares(L.LightningDataModule):
    def train_dataloader(self):
        return loader([pack([row], 32, 0) for row in SHARES[self.trainer.global_rank]])


def main(callback: L.Callback, epochs: int, ckpt_path=None) -> None:
    trainer = trainer_of(
        FOLDER, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), accumulate_grad_batches=2,
        use_distributed_sampler=False, callbacks=[callback, GradNorms(), SPIKES], max_epochs=epochs,
        log_every_n_steps=1,
    )  # fmt: skip
    recorder = Recorder()
    trainer.fit(SFTStage(tiny_vlm(), recorder, clip_norm=0.0), datamodule=Shares(), ckpt_path=ckpt_path)
    if trainer.is_global_zero and ckpt_path is None:
        torch.save(recorder.taken, FOLDER / "gradients.pt")


main(Checkpoint(), epochs=1)
main(Note(), epochs=2, ckpt_path=FOLDER / "two.ckpt")
