"""A tiny reinforcement-learning run in memory, and as processes that are killed: ``rl_runs.py FOLDER KIND...``."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

sys.path.insert(0, str(Path(__file__).parent))

from processes import in_fork
from tiny import png, tiny_tokenizer, tiny_vlm

from bluelm_lightning.callbacks import ThinkingBudgetCurriculum
from bluelm_lightning.components import ValueHead
from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.datamodules import PromptDataModule, SourceSpec
from bluelm_lightning.generation import Sampling, ThinkingBudget
from bluelm_lightning.rl.policy_loss import DAPO, GSPO, DrGRPO, PolicyLoss
from bluelm_lightning.rl.rewards import Repetition, Reward, RewardRouter
from bluelm_lightning.stages import AdamW, PPOStage, RLStage, RolloutPlan, ValuePlan
from bluelm_lightning.types import Sample, Score


class Questions:
    """Questions with and without a picture; number ``broken`` has a picture that is none."""

    def __init__(self, num: int = 12, broken: int = -1) -> None:
        self.num, self.broken = num, broken

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Sample:
        pictured = index % 3 == 0
        data = [b"\x89PNG\r\n\x1a\nbroken" if index == self.broken else png(seed=index)] * pictured
        turns = [{"role": "user", "content": "<image>" * pictured + "is it red?" * (1 + index % 2)}]
        return Sample(f"q{index}", "questions", turns, images=data, answer="a")


class WantsLowIds(Reward):
    """1 for an answer whose ids are all small: a task that a random model can learn in a few steps."""

    def score(self, rollouts):
        return [Score(float((r.ids < 100).float().mean())) for r in rollouts]


class Diary(L.Callback):
    """A line for each batch: loss and rollouts to the last bit; and the kill."""

    def __init__(self, path: Path | None = None, kill_after: int = 0) -> None:
        self.path, self.kill_after, self.lines = path, kill_after, []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        written = batch.labels[batch.labels != -100].tolist()
        self.lines.append(f"{batch.cursor} {float(outputs['loss'].detach()).hex()} {hash(tuple(written))}")
        if self.path:
            with self.path.open("a") as file:
                file.write(self.lines[-1] + "\n")
        if self.kill_after and len(self.lines) == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def stage_of(**options) -> RLStage:
    rewards = options.pop("rewards", None) or RewardRouter({"low": WantsLowIds(), "repetition": Repetition(4)})
    plan = RolloutPlan(**{"group_size": 4, "batch_size": 4, **options.pop("plan", {})})
    options = {"optimizer": AdamW(lr=3e-3), "budget": ThinkingBudget(answer_reserve=3), **options}
    vlm = options.pop("vlm", None) or tiny_vlm(seed=2)
    return RLStage(vlm, rewards, sampling=Sampling(12, 1.0), plan=plan, **options)


def ppo_stage_of(**options) -> PPOStage:
    torch.manual_seed(5)
    values = ValuePlan(**options.pop("values", {}))
    plan = RolloutPlan(**{"group_size": 4, "batch_size": 4, **options.pop("plan", {})})
    options = {"optimizer": AdamW(lr=3e-3), "budget": ThinkingBudget(answer_reserve=3), **options}
    rewards = options.pop("rewards", None) or RewardRouter({"low": WantsLowIds(), "repetition": Repetition(4)})
    vlm, head = tiny_vlm(seed=2), ValueHead(32)
    return PPOStage(vlm, head, rewards, values, sampling=Sampling(12, 1.0), plan=plan, **options)


ALGORITHMS = {
    "grpo": stage_of,
    "dr_grpo": lambda **o: stage_of(algorithm=DrGRPO(12), plan={"advantage": "none"}, **o),
    "dapo": lambda **o: stage_of(algorithm=DAPO(), **o),
    "gspo": lambda **o: stage_of(algorithm=GSPO(0.1, 0.1), **o),
    "rloo": lambda **o: stage_of(algorithm=PolicyLoss(aggregate="token"), plan={"advantage": "rloo"}, **o),
    "ppo": ppo_stage_of,
}


def data_of(folder: Path, source: Questions | None = None, **options) -> PromptDataModule:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        tiny_tokenizer().save_pretrained(tokenizer)
    sources = [SourceSpec(source=source or Questions(), name="questions", thinking_share=0.5)]
    options = {"prompts_per_step": 4, "budgets": BudgetRange(0, 6, 0.5), **options}
    return PromptDataModule(str(tokenizer), sources, **options)


def fit(stage: RLStage, data: PromptDataModule, folder: Path, steps: int, *callbacks, ckpt_path=None, **trainer):
    saver = ModelCheckpoint(folder / "checkpoints", "last", every_n_train_steps=3, enable_version_counter=False)
    made = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=[saver, *callbacks], log_every_n_steps=1,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **trainer,
    )  # fmt: skip
    made.fit(stage, data, ckpt_path=ckpt_path, weights_only=True)
    return made


def _run(folder: Path, part: str) -> None:
    """``whole``: eleven batches. ``killed``: after the eighth. ``resumed``: from the last checkpoint to the end."""
    L.seed_everything(0, verbose=False)
    unsure = tiny_vlm(seed=2, config={"attention_dropout": 0.1})
    options = {"buffered": {"plan": {"minibatches": 2, "epochs": 2}}, "ahead": {"plan": {"ahead": True}, "vlm": unsure}}
    diary = Diary(folder / f"{part}.txt", 8 if part == "killed" else 0)
    curriculum = ThinkingBudgetCurriculum((4, 8), (0, 2), total_steps=6, free_share=0.3)
    stage, place = stage_of(**options.get(folder.name, {})), folder / ("whole" if part == "whole" else "broken")
    last = place / "checkpoints" / "last.ckpt" if part == "resumed" else None
    fit(stage, data_of(folder), place, 11, diary, curriculum, ckpt_path=last)


def main(folder: Path, kinds: list[str]) -> None:
    """Writes the diaries of each kind, and their exit codes."""
    torch.set_num_threads(1)
    codes = {}
    for kind in kinds:
        (folder / kind).mkdir()
        codes[kind] = [in_fork(partial(_run, folder / kind, part)) for part in ("whole", "killed", "resumed")]
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
