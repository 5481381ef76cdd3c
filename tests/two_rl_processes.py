"""Run by test_rl_two_processes.py, ``python two_rl_processes.py FOLDER N [sharded]``: GRPO and PPO on N processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from rl_runs import data_of, fit, ppo_stage_of, stage_of

from bluelm_lightning.stages import ShardedStrategy

FOLDER = Path(sys.argv[1])
SHARDED = sys.argv[3:] == ["sharded"]


class Keep(L.Callback):
    """Gradients of the first step and rewards of all, of each process."""

    def __init__(self, name):
        self.name, self.gradients, self.prompts = name, None, []

    def on_before_optimizer_step(self, trainer, stage, optimizer):
        if self.gradients is None:
            self.gradients = {n: whole(p.grad).clone() for n, p in stage.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.prompts.append([item.rollout.prompt.seed for item in stage.scored])

    def on_train_end(self, trainer, stage):
        weights = {n: whole(p.detach()) for n, p in stage.named_parameters()}
        kept = {"gradients": self.gradients, "prompts": self.prompts, "weights": weights}
        world = "sharded" if SHARDED else trainer.world_size
        torch.save(kept, FOLDER / f"{self.name}-{world}-{trainer.global_rank}.pt")


def whole(tensor):
    return tensor.full_tensor() if SHARDED else tensor


def run(processes: int) -> None:
    kind = ShardedStrategy if SHARDED else DDPStrategy
    for name, made in (("grpo", stage_of), ("ppo", ppo_stage_of)):
        data = data_of(FOLDER, prompts_per_step=4 // processes)
        options = {} if processes == 1 else {"devices": 2, "strategy": kind(process_group_backend="gloo")}
        stage = made(clip_norm=0.0, plan={"drop_zero_variance": False})
        fit(
            stage,
            data,
            FOLDER / f"{name}{''.join(sys.argv[2:])}",
            3,
            Keep(name),
            use_distributed_sampler=False,
            **options,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(int(sys.argv[2]))
