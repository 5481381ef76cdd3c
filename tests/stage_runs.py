"""Tiny runs of the stages beside fine-tuning and RL, in memory and as processes.

As a script (``python stage_runs.py FOLDER NAME ...``) it forks, for each stage, a run that is whole, one that is killed
with -9 after the eighth batch (saved after the sixth), and one that goes on from there.
"""

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
from test_preference import Preferences
from tiny import tiny_decoder, tiny_tokenizer, tiny_vlm
from tiny_data import Talks, Texts, loader_of

from bluelm_lightning.callbacks import LengthPhase, LengthSchedule, RopeSwitch, SharePoint, ShareSchedule
from bluelm_lightning.components import LanguageModel
from bluelm_lightning.datamodules import MultimodalDataModule, PreferenceDataModule, SFTDataModule, SourceSpec
from bluelm_lightning.stages import (
    AdamW,
    DistillPlan,
    DistillStage,
    DPOStage,
    Muon,
    ParameterGroup,
    PretrainStage,
    RewardStage,
    SFTStage,
    Stage,
    WarmupCosine,
    WarmupStableDecay,
    write_cache,
)

DROPOUT = {"attention_dropout": 0.3}
PLAN = DistillPlan(top_k=16, weight=0.7)


def _options() -> dict:
    return {"optimizer": AdamW(lr=3e-3), "schedule": WarmupCosine(total_steps=20, warmup_steps=2)}


def _cached(folder: Path) -> DistillStage:
    cache = folder / "cache"
    if not cache.exists():
        write_cache(tiny_vlm(seed=7), loader_of(), cache, PLAN)
    return DistillStage(tiny_vlm(seed=1, config=DROPOUT), cache=str(cache), plan=PLAN, **_options())


def _live(folder: Path) -> DistillStage:
    """The teacher has dropout too: it must never be in training mode."""
    student, teacher = tiny_vlm(seed=1, config=DROPOUT), tiny_vlm(seed=7, config=DROPOUT)
    plan = DistillPlan("reverse", 2.0, 0, 0.7, hidden_weight=0.1)
    return DistillStage(student, teacher, plan=plan, **_options())


def _reward(folder: Path) -> RewardStage:
    vlm = tiny_vlm(seed=1, config=DROPOUT)
    torch.manual_seed(3)
    return RewardStage(vlm, 16, 0.1, **_options())


def _joint(start: int | str) -> PretrainStage:
    """The schedule is sized for three times this stage; the next one goes on with it."""
    groups = [ParameterGroup("vlm.vision.*", layer_decay=0.9)]
    schedule = WarmupCosine(total_steps=60, warmup_steps=2, start_step=start)
    schedule.inherit(20)
    return PretrainStage(tiny_vlm(seed=1, config=DROPOUT), Muon(lr=3e-3, groups=groups), schedule)


def _long_context(folder: Path) -> PretrainStage:
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    vlm = tiny_vlm(seed=1, config=DROPOUT, rope=rope)
    return PretrainStage(vlm, Muon(lr=3e-3), WarmupStableDecay(total_steps=20, decay_steps=14, shape="sqrt"))


def _aligned(folder: Path) -> PretrainStage:
    """A decoder of large weights: what the adapter says must reach the loss."""
    frozen = ["vlm.vision.*", "vlm.decoder.*"]
    vlm = tiny_vlm(seed=1, config={**DROPOUT, "initializer_range": 0.2})
    return PretrainStage(vlm, AdamW(lr=1e-2), WarmupCosine(20, 2), frozen)


STAGES = {
    "text": lambda folder: PretrainStage(LanguageModel(tiny_decoder(seed=1, config=DROPOUT)), **_options()),
    "distill_live": _live,
    "distill_cache": _cached,
    "reward": _reward,
    "dpo": lambda folder: DPOStage(tiny_vlm(seed=1, config=DROPOUT), 0.5, 0.05, **_options()),
    "joint_align": _aligned,
    "joint": lambda folder: _joint(0),
    "reasoning": lambda folder: _joint("inherit"),
    "long_context": _long_context,
    "long_sft": lambda folder: SFTStage(tiny_vlm(seed=1, config=DROPOUT), **_options()),
}
SLOW = ("joint_align", "joint", "reasoning", "long_sft")  # killed in the slow tests: what they add is schedules


def callbacks_of(name: str) -> list[L.Callback]:
    """Long context: rows grow and YaRN begins before the checkpoint, rows grow again after it, shares always move."""
    if name != "long_context":
        return []
    points = [SharePoint(0, {"Talks": 0.8, "Texts": 0.2}), SharePoint(16, {"Talks": 0.15, "Texts": 0.85})]
    phases = [LengthPhase(0, 96, 3), LengthPhase(4, 128, 2), LengthPhase(8, 192, 1)]
    return [LengthSchedule(phases), RopeSwitch(4), ShareSchedule(points)]


def _sources(name: str) -> list[SourceSpec]:
    talks, texts = Talks(40), Texts(25)
    if name in ("joint", "reasoning"):
        share = 0.4 if name == "joint" else 0.8
        return [SourceSpec(source=talks, token_weight=1 - share), SourceSpec(source=texts, token_weight=share)]
    if name == "long_sft":
        regular = SourceSpec(source=talks, epochs=3, thinking_share=0.6)
        return [regular, SourceSpec(source=Talks(16, long=tuple(range(16))), name="long", epochs=9)]
    sources = {"text": [texts], "joint_align": [talks]}.get(name, [talks, texts])
    return [SourceSpec(source=source) for source in sources]


def data_of(name: str, folder: Path) -> MultimodalDataModule:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        tiny_tokenizer().save_pretrained(tokenizer)
    if name in ("reward", "dpo"):
        return PreferenceDataModule(str(tokenizer), [SourceSpec(source=Preferences())], row_tokens=128, num_workers=0)
    row_tokens = 256 if name == "long_sft" else 96
    return SFTDataModule(str(tokenizer), _sources(name), row_tokens=row_tokens, batch_rows=2, num_workers=0)


class Diary(L.Callback):
    """The losses, to the last bit in a file; and the kill."""

    def __init__(self, path: Path | None = None, kill_after: int = 0) -> None:
        self.path, self.kill_after, self.losses = path, kill_after, []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"].detach()))
        if self.path:
            with self.path.open("a") as file:
                file.write(f"{batch.cursor} {self.losses[-1].hex()} {' '.join(batch.sample_ids)}\n")
        if len(self.losses) == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(stage: Stage, data: MultimodalDataModule, folder: Path, steps: int, *callbacks, ckpt_path=None) -> None:
    saver = ModelCheckpoint(folder / "checkpoints", "last", every_n_train_steps=3, enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=[saver, *callbacks], log_every_n_steps=1,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(stage, data, ckpt_path=ckpt_path, weights_only=True)


def golden(name: str, folder: Path) -> list[float]:
    """Losses of twenty seeded steps."""
    folder.mkdir(parents=True, exist_ok=True)
    stage, data, diary = STAGES[name](folder), data_of(name, folder), Diary()
    L.seed_everything(0, verbose=False)
    fit(stage, data, folder, 20, diary, *callbacks_of(name))
    return [round(loss, 6) for loss in diary.losses]


def _run(name: str, folder: Path, part: str) -> None:
    resumed = folder / "checkpoints" / "last.ckpt" if part == "resumed" else None
    stage, data = STAGES[name](folder), data_of(name, folder)
    if resumed:  # it must live on its checkpoint alone, not on the weights and the seed that it began with
        with torch.no_grad():
            for parameter in (p for p in stage.parameters() if p.requires_grad):
                parameter.add_(1.0)
        if stage.schedule.inherits:
            stage.schedule.start_step = 0
    torch.manual_seed(1 if resumed else 0)
    diary = Diary(folder / f"{part}.txt", 8 * (part == "killed"))
    fit(stage, data, folder, 12, diary, *callbacks_of(name), ckpt_path=resumed)


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    codes = {}
    for name in names:
        (folder / name).mkdir()
        parts = ("whole", "killed", "resumed")
        codes[name] = [in_fork(partial(_run, name, folder / name, part)) for part in parts]
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
