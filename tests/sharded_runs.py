"""Run by test_sharding.py, ``python sharded_runs.py FOLDER N STRATEGY SCENARIO...``: runs whose figures must agree."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from test_stage import DOCS, loader, trainer_of
from tiny import tiny_decoder, tiny_vit, tiny_vlm

from bluelm_lightning.components import LanguageModel, MLPProjector, VisionLanguageModel
from bluelm_lightning.data.packing import pack
from bluelm_lightning.stages import AdamW, DistillPlan, DistillStage, DPOStage, Muon, RewardStage, SFTStage
from bluelm_lightning.stages.base import _UNIT
from bluelm_lightning.stages.sharded_strategy import ShardedStrategy
from bluelm_lightning.types import IGNORE

FOLDER, PROCESSES, STRATEGY = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ADAM = {"lr": 3e-3, "eps": 1e-3}  # a large eps: Adam divides by gradients near 0, whose last bits depend on the order
STEPS = 5


class Shares(L.LightningDataModule):
    """Rank 0 sees documents 0 and 2, which hold all pictures; rank 1 sees 1 and 3, without a picture.

    Of held-out pairs rank 1 sees none at all.
    """

    def __init__(self, pairs: bool, text: bool) -> None:
        super().__init__()
        self.pairs, self.text = pairs, text

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        rows = [[DOCS[1]], [DOCS[3]]] if self.text else [[DOCS[0], DOCS[2]], [DOCS[1], DOCS[3]]]
        if STRATEGY == "context":  # one row whose middle is inside of a document and of a picture
            return loader([pack([[DOCS[1], DOCS[3]]], 64, 0) if self.text else pack([DOCS], 128, 0)] * STEPS)
        mine = rows if world == 1 else rows[rank : rank + 1]
        return loader([pack(mine, 64, 0)] * STEPS)

    def val_dataloader(self):
        if self.pairs and self.trainer.global_rank == 1:
            return loader([pack([[]], 64, 0)] * STEPS)
        return self.train_dataloader()


class Keep(L.Callback):
    """Global mean loss of each step; weights at the end; a checkpoint on the way and one at the end."""

    def __init__(self, name):
        self.name, self.losses, self.path = name, [], FOLDER / f"{name}-{STRATEGY}-{PROCESSES}.ckpt"

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        loss, unit = outputs["loss"].detach().float(), torch.tensor(1.0)
        if trainer.world_size > 1:
            items = len(batch.sample_ids) // 2 if "pairs" in self.name else int((batch.labels != IGNORE).sum())
            items //= getattr(trainer.strategy, "context_parallel", 1)  # both hold the whole batch
            unit = trainer.strategy.reduce(torch.tensor(items / _UNIT), reduce_op="sum")
            loss = trainer.strategy.reduce(loss, reduce_op="sum")
        self.losses.append(float(loss / unit))
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path.with_suffix(".mid.ckpt"))

    def on_train_end(self, trainer, stage):
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            torch.save(self.losses, self.path.with_suffix(".losses"))
            held_out = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
            torch.save(held_out, self.path.with_suffix(".val"))


def untied():
    return tiny_vlm(config={"tie_word_embeddings": False})


def tied():
    return tiny_vlm(config={"tie_word_embeddings": True})


def checkpointed():
    """As `tied`, with the activations of every block computed again in the backward pass."""
    decoder = tiny_decoder(config={"tie_word_embeddings": True}, gradient_checkpointing=True)
    return VisionLanguageModel(tiny_vit(gradient_checkpointing=True), MLPProjector(24, 32), decoder)


def distil():
    torch.manual_seed(3)
    plan = DistillPlan(hidden_weight=0.1)
    return DistillStage(tied(), tiny_vlm(seed=1, config={"hidden_size": 32}), plan=plan, optimizer=AdamW(**ADAM))


def reward():
    torch.manual_seed(3)
    return RewardStage(tied(), optimizer=AdamW(**ADAM))


class SGD(AdamW):
    """Steps along the gradient itself: what the weights differ by afterwards is the gradients' difference."""

    def build(self, module):
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=self.lr)


MADE = {
    "sgd": lambda: SFTStage(tied(), SGD(lr=1.0), clip_norm=0.0),
    "text": lambda: SFTStage(LanguageModel(tiny_decoder()), SGD(lr=0.1), clip_norm=0.0),
    "untied": lambda: SFTStage(untied(), AdamW(**ADAM), clip_norm=0.5),
    "tied": lambda: SFTStage(tied(), AdamW(**ADAM), clip_norm=0.5),
    "checkpointed": lambda: SFTStage(checkpointed(), AdamW(**ADAM), clip_norm=0.5),
    "frozen": lambda: SFTStage(tied(), AdamW(**ADAM), frozen=["vlm.vision.*", "vlm.decoder.*"]),
    "half": lambda: SFTStage(tied(), AdamW(**ADAM), frozen=["vlm.vision.model.blocks.0.*", "*embed_tokens*"]),
    "muon": lambda: SFTStage(tied(), Muon(**ADAM)),
    "distill": distil,
    "dpo_pairs": lambda: DPOStage(tied(), 0.5, optimizer=AdamW(**ADAM)),
    "reward_pairs": reward,
}


def strategy():
    if PROCESSES == 1:
        return {}
    if STRATEGY == "context":
        return {"devices": 2, "strategy": ShardedStrategy(2, "gloo"), "use_distributed_sampler": False}
    kind = DDPStrategy if STRATEGY == "ddp" else ShardedStrategy
    return {"devices": PROCESSES, "strategy": kind(process_group_backend="gloo"), "use_distributed_sampler": False}


def run(name: str) -> None:
    scenario, _, resumed = name.partition("+")
    keep = Keep(name)
    path = FOLDER / f"{scenario}-{STRATEGY}-{PROCESSES}.mid.ckpt" if resumed == "resume" else None
    if resumed.startswith("from_"):  # another strategy's checkpoint
        path = FOLDER / f"{scenario}-{resumed.removeprefix('from_')}-{PROCESSES}.mid.ckpt"
    stage = MADE[scenario]()
    options: dict = {"callbacks": [keep], "max_epochs": 1, "num_sanity_val_steps": 0, "val_check_interval": 2}
    data = Shares("pairs" in name, "text" in name)
    if path is not None:
        options["limit_train_batches"] = STEPS
    trainer_of(FOLDER, **options, **strategy()).fit(stage, datamodule=data, ckpt_path=path, weights_only=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[4:]:
        run(name)
