"""Run by test_datamodule.py, ``python resume_runs.py FOLDER``: runs unbroken, killed with -9 half-way, and resumed.

Every run is a real process of its own (or two), forked here after the imports, which take most of the time. Each writes
a line for every batch it trained on: the loss to the last bit, and the samples.
"""

import json
import os
import signal
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from processes import rendezvous  # noqa: E402
from tiny import tiny_tokenizer, tiny_vlm  # noqa: E402
from tiny_data import Talks, Texts, loader_of  # noqa: E402

from bluelm_lightning.callbacks import (  # noqa: E402
    KeyDataResampling,
    LengthPhase,
    LengthSchedule,
    SharePoint,
    ShareSchedule,
)
from bluelm_lightning.cli.defaults import RunCheckpoint  # noqa: E402
from bluelm_lightning.data.policies import LearningProgress  # noqa: E402
from bluelm_lightning.datamodules import SFTDataModule, SourceSpec  # noqa: E402
from bluelm_lightning.stages import AdamW, SFTStage, WarmupCosine  # noqa: E402
from bluelm_lightning.types import Ref  # noqa: E402

FOLDER = Path(sys.argv[-1])
STEPS = 12
# Saved after every third step and killed after the eighth batch, unless told otherwise: two steps are lost.
RUNS: dict[str, dict] = {
    "no worker": {},
    "one worker": {"workers": 1},
    "two workers": {"workers": 2},
    "one worker, then two": {"workers": 1, "workers_later": 2},
    "two workers, then none": {"workers": 2, "workers_later": 0},
    "validation": {"val": True, "trainer": {"val_check_interval": 2}},
    "validation where it is saved": {"val": True, "trainer": {"val_check_interval": 3}},
    "killed in a short epoch": {"trainer": {"limit_train_batches": 4}},
    "saved at the end of short epochs": {"val": True, "trainer": {"limit_train_batches": 3}},
    "accumulation": {"trainer": {"accumulate_grad_batches": 2, "max_steps": 7}, "kill_after": 9},
    "accumulation, saved where a round ends": {
        "epochs": 0.5,
        "trainer": {"accumulate_grad_batches": 2, "max_steps": 7},
        "ours": True,
    },
    "killed in the second round": {"epochs": 0.5, "kill_after": 11},
    "saved at the end of rounds": {"epochs": 0.5, "kill_after": 8, "every_round": True},
    "moving rows and shares": {"moving": True},
    "moving rows and shares, two workers": {"moving": True, "workers": 2, "workers_later": 1},
    "two processes": {"epochs": 0.5, "kill_after": 7, "world": 2},
    "resampled": {"resampled": True},
    "resampled, two workers": {"resampled": True, "workers": 2, "workers_later": 1},
    "resampled, two processes": {"resampled": True, "world": 2},
}
# Workers, validation and the trainer's epochs change nothing: these runs are held against one that has none of them.
WHOLE = {name: name if run.get("world") or "accumulation" in name else "no worker" for name, run in RUNS.items()}
WHOLE |= {name: "moving rows and shares" for name, run in RUNS.items() if run.get("moving")}
WHOLE |= dict.fromkeys(("resampled", "resampled, two workers"), "resampled")
WHOLE |= dict.fromkeys(("killed in the second round", "saved at the end of rounds"), "killed in the second round")


class Diary(L.Callback):
    """A line for each batch, and the kill."""

    def __init__(self, path: Path, kill_after: int | None) -> None:
        self.path, self.kill_after, self.seen = path, kill_after, 0

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.seen += 1
        line = {"loss": float(outputs["loss"]).hex(), "samples": batch.sample_ids, "cursor": batch.cursor}
        with open(self.path.with_suffix(f".{trainer.global_rank}.jsonl"), "a") as file:
            file.write(json.dumps({"step": trainer.global_step, "epoch": trainer.current_epoch, **line}) + "\n")
        if self.seen == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, diary: str, kill_after: int | None = None, resume: bool = False, **run) -> None:
    ranks = run.get("world", 1)
    size = ranks if run.get("resampled") else 1  # its samples have limits and must last
    epochs, sources = run.get("epochs"), [Talks(40 * size), Texts(25 * size)]
    data = SFTDataModule(
        tokenizer=str(FOLDER / "tokenizer"),
        sources=[
            SourceSpec(source=source, weight=2 - n, epochs=epochs, max_repeats=2 - n if run.get("resampled") else None)
            for n, source in enumerate(sources)
        ],
        val_sources=[SourceSpec(source=Texts(5))] if run.get("val") else None,
        row_tokens=96,
        batch_rows=2,
        num_workers=run.get("workers", 0),
    )
    schedule = WarmupCosine(total_steps=STEPS, warmup_steps=2)
    stage = SFTStage(tiny_vlm(config={"attention_dropout": 0.3}), AdamW(lr=1e-2), schedule)
    every = {"save_on_train_epoch_end": True} if run.get("every_round") else {"every_n_train_steps": 3}
    saver = ModelCheckpoint(folder / "saved", filename="last", save_top_k=1, enable_version_counter=False, **every)
    saver = RunCheckpoint(folder / "saved", 3) if run.get("ours") else saver
    strategy = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"
    settings = {"max_steps": STEPS, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **run.get("trainer", {})}
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, use_distributed_sampler=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[saver, Diary(folder / diary, kill_after), *moving(run, folder, diary)], **settings,
    )  # fmt: skip
    torch.manual_seed(1 if resume else 0)  # a resume must not live on the seed
    trainer.fit(stage, datamodule=data, ckpt_path=folder / "saved/last.ckpt" if resume else None, weights_only=True)


def moving(run: dict, folder: Path, diary: str) -> list[L.Callback]:
    """Rows grow at steps 4 and 9, on either side of what is lost; the texts' share rises all the time.

    Or: shares follow what is learnt, from step 5 on by the losses of the first two.
    """
    if run.get("resampled"):
        ledger = folder / ("whole.npz" if diary == "whole" else "resumed.npz")
        return [KeyDataResampling(LearningProgress(0.1), 2, str(ledger))]
    if not run.get("moving"):
        return []
    phases = [LengthPhase(0, 96, 3), LengthPhase(4, 128, 2), LengthPhase(9, 192, 1)]
    ends = ({"Talks": 1.0, "Texts": 0.0}, {"Talks": 1.0, "Texts": 4.0})
    points = [SharePoint(step, weights) for step, weights in zip((0, STEPS), ends)]
    return [LengthSchedule(phases), ShareSchedule(points)]


def in_processes(folder: Path, diary: str, **run) -> list[int]:
    """Exit codes of the run's processes, -9 for the killed."""
    os.environ.update(rendezvous())
    children = []
    for rank in range(run.get("world", 1)):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ["LOCAL_RANK"] = str(rank)
        with open(folder / f"{diary}.{rank}.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = 1
        try:
            signal.alarm(40)  # two processes that wait for each other would wait forever
            fit(folder, diary, **run)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    tiny_tokenizer().save_pretrained(str(FOLDER / "tokenizer"))
    tiny_vlm(), loader_of().fetcher[[Ref(0, 0, 0)]]  # their imports, once for all
    codes: dict[str, list[list[int]]] = {}
    for name, run in RUNS.items():
        folder, kill_after = FOLDER / name, run.pop("kill_after", 8)
        folder.mkdir()
        later = {**run, "workers": run.get("workers_later", run.get("workers", 0))}
        codes[name] = [
            in_processes(folder, "whole", **run) if WHOLE[name] == name else [0],
            in_processes(folder, "killed", kill_after=kill_after, **run),
            in_processes(folder, "resumed", resume=True, **later),
        ]
    (FOLDER / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
