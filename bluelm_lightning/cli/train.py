"""One run: folder, callbacks, loggers, weights handed over, fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from bluelm_lightning.callbacks import TrainingStopped
from bluelm_lightning.callbacks.lineage import Lineage
from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.checks import check_paths, check_resume, check_trainer
from bluelm_lightning.cli.defaults import default_callbacks, default_loggers
from bluelm_lightning.cli.options import Options
from bluelm_lightning.cli.run_folder import RunFolder
from bluelm_lightning.cli.summary import image_settings, render, summarize
from bluelm_lightning.cli.tracking import close_loggers, prepare_wandb, start_loggers
from bluelm_lightning.components.weights import Loaded, init_from
from bluelm_lightning.errors import ConfigError


def train(cli: FitCLI, options: Options, folder: RunFolder, command: Sequence[str]) -> int:
    """Build and fit. Returns the exit code."""
    check_paths(cli.config)
    check_trainer(cli.config.trainer)
    cli.rehearse()
    saved = _read_checkpoint(folder.ckpt_path)
    _check_hand_over(cli, options)
    _check_resume(cli, saved, cli.rehearsed_optimizer)
    folder.claim()
    try:
        _build(cli, options, folder, saved, command)
        return _fit(cli, folder)
    finally:
        close_loggers()
        folder.release()


def _build(cli: FitCLI, options: Options, folder: RunFolder, saved: dict[str, Any], command: Sequence[str]) -> None:
    cli.seed()
    settings = cli.dump()  # before the run folder is written into it
    prepare_wandb(cli.config.trainer.get("logger"), folder.path)
    step = int(saved.get("global_step", 0))
    records = _records(options, folder, settings, command)
    cli.build(lambda trainer: _trainer_arguments(trainer, options, folder, step, records))
    if cli.rehearsed_optimizer is None and saved:  # a part that cannot be built on the meta device
        _check_resume(cli, saved, cli.model.configure_optimizers())
    given = () if cli.receives else options.init_from  # process 0 sends them
    loaded = [row for path, names in given for row in init_from(cli.model.vlm, path, names)]
    _hand_over_schedule(cli.model.schedule, options)
    start_loggers(cli.trainer.loggers, yaml.safe_load(settings))
    _announce(cli, folder, loaded)


def _hand_over_schedule(schedule: Any, options: Options) -> None:
    """``start_step: inherit``: the position that the parent's schedule had reached."""
    if not schedule.inherits or options.ckpt_path:  # a resume finds its own in its checkpoint
        return
    held = [_read_checkpoint(path).get("schedule") for path, _ in options.init_from if path.suffix == ".ckpt"]
    found = sorted({place["position"] for place in held if place})
    if not found:
        raise ConfigError(
            "says inherit, but no --init_from names a checkpoint of a stage; give one, or a number",
            "model.schedule.start_step",
        )
    if len(found) > 1:
        reason = f"says inherit, but the parents stand at steps {', '.join(map(str, found))}; give a number"
        raise ConfigError(reason, "model.schedule.start_step")
    schedule.inherit(found[0])
    if schedule.value_at(0) <= 0:
        reason = f"the parent stands at step {found[0]}, where the schedule has ended; raise total_steps"
        raise ConfigError(reason, "model.schedule.total_steps")


def _fit(cli: FitCLI, folder: RunFolder) -> int:
    path = None if folder.ckpt_path is None else str(folder.ckpt_path)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    except TrainingStopped as stop:
        print(f"bluelm-fit: stopped: {stop}", file=sys.stderr)
        return 1
    except SystemExit:  # Lightning's answer to Ctrl-C is exit code 1
        if cli.trainer.interrupted:
            return 130
        raise
    last = folder.checkpoints / "last.ckpt"
    if cli.trainer.is_global_zero and last.is_file():
        print(f"done; for the next stage: --init_from {os.path.relpath(last)}")
    return 0


def _records(options: Options, folder: RunFolder, settings: str, command: Sequence[str]) -> list[Callback]:
    config = folder.next_file("config.yaml")
    lineage = Lineage(folder.next_file("lineage.json"), _parents(options, folder), config.name, command)
    return [_SaveConfig(config, settings), lineage]


def _trainer_arguments(
    trainer: Namespace, options: Options, folder: RunFolder, step: int, records: list[Callback]
) -> dict[str, Any]:
    configured = trainer.get("callbacks") or []
    configured = configured if isinstance(configured, list) else [configured]
    every, steps = trainer.get("log_every_n_steps"), trainer.get("max_steps") or -1
    every = 50 if every is None else every  # Lightning's default
    return {
        "log_every_n_steps": every if steps < 1 else min(every, steps),  # a short run leaves figures, too
        "default_root_dir": str(folder.path),
        "callbacks": [*configured, *default_callbacks(trainer, folder.checkpoints, options.every_n_steps), *records],
        "logger": default_loggers(trainer.get("logger"), folder.path, step if folder.continued else 0),
    }


def _read_checkpoint(path: Path | None) -> dict[str, Any]:
    """Tensors stay on disk; nothing is unpickled but plain values."""
    if path is None:
        return {}
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is not a readable checkpoint: {reason}", "--ckpt_path") from error


def _check_hand_over(cli: FitCLI, options: Options) -> None:
    if cli.rehearsed is None:
        return
    known = [name for name, _ in cli.rehearsed.vlm.named_children()]
    wrong = [name for _, names in options.init_from for name in names or () if name not in known]
    if wrong:
        raise ConfigError(f"no component {wrong[0]!r}; this model has {', '.join(known)}", "--init_from")


def _check_resume(cli: FitCLI, saved: dict[str, Any], configured: Any) -> None:
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    if saved and isinstance(optimizer, torch.optim.Optimizer):
        check_resume(saved, optimizer, cli.config.trainer.max_steps)


def _parents(options: Options, folder: RunFolder) -> list[dict[str, Any]]:
    parents = [{"path": str(path), "use": "init_from", "components": names} for path, names in options.init_from]
    if folder.ckpt_path:
        parents.append({"path": str(folder.ckpt_path), "use": "ckpt_path", "components": None})
    return parents


@rank_zero_only
def _announce(cli: FitCLI, folder: RunFolder, loaded: list[Loaded]) -> None:
    continued = f", continued from {folder.ckpt_path}" if folder.ckpt_path else ""
    print(f"run folder: {os.path.relpath(folder.path)}{continued}")
    print(render(summarize(cli.model, **image_settings(cli.config))))
    for row in loaded:
        print(f"loaded {row.component:<10} {row.tensors:>5} tensors {row.parameters:>14,} values  from {row.source}")


class _SaveConfig(Callback):
    """Not earlier: a run that fails while its data is opened leaves an empty folder, which may be used again."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.path.write_text(self.text, encoding="utf-8")
