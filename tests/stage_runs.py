"""Tiny runs of the stages beside fine-tuning and RL, in memory and as processes: ``python stage_runs.py FOLDER``.

As a script it forks, for each stage, a run that is whole, one that is killed with -9 after the eighth batch (saved
after the sixth), and one that goes on from there.
"""

import json
import os
import signal
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

sys.path.insert(0, str(Path(__file__).parent))

from test_preference import Preferences
from tiny import tiny_decoder, tiny_tokenizer, tiny_vlm
from tiny_data import Talks, Texts, loader_of

from bluelm_lightning.components import LanguageModel
from bluelm_lightning.datamodules import MultimodalDataModule, PreferenceDataModule, SFTDataModule, SourceSpec
from bluelm_lightning.stages import (
    AdamW,
    DistillPlan,
    DistillStage,
    DPOStage,
    PretrainStage,
    RewardStage,
    Stage,
    WarmupCosine,
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


STAGES = {
    "text": lambda folder: PretrainStage(LanguageModel(tiny_decoder(seed=1, config=DROPOUT)), **_options()),
    "distill_live": _live,
    "distill_cache": _cached,
    "reward": _reward,
    "dpo": lambda folder: DPOStage(tiny_vlm(seed=1, config=DROPOUT), 0.5, 0.05, **_options()),
}


def data_of(name: str, folder: Path) -> MultimodalDataModule:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        tiny_tokenizer().save_pretrained(tokenizer)
    if name in ("reward", "dpo"):
        return PreferenceDataModule(str(tokenizer), [SourceSpec(source=Preferences())], row_tokens=128, num_workers=0)
    sources = [SourceSpec(source=source) for source in ([Texts(25)] if name == "text" else [Talks(40), Texts(25)])]
    return SFTDataModule(str(tokenizer), sources, row_tokens=96, batch_rows=2, num_workers=0)


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
    fit(stage, data, folder, 20, diary)
    return [round(loss, 6) for loss in diary.losses]


def _in_process(name: str, folder: Path, part: str) -> int:
    """Exit code, -9 when it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        signal.alarm(60)
        resumed = folder / "checkpoints" / "last.ckpt" if part == "resumed" else None
        stage, data = STAGES[name](folder), data_of(name, folder)
        if resumed:  # it must live on its checkpoint alone, not on the weights and the seed that it began with
            with torch.no_grad():
                for parameter in (p for p in stage.parameters() if p.requires_grad):
                    parameter.add_(1.0)
        torch.manual_seed(1 if resumed else 0)
        fit(stage, data, folder, 12, Diary(folder / f"{part}.txt", 8 * (part == "killed")), ckpt_path=resumed)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(code)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    codes = {}
    for name in STAGES:
        (folder / name).mkdir()
        codes[name] = [_in_process(name, folder / name, part) for part in ("whole", "killed", "resumed")]
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
