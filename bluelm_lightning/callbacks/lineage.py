"""Lineage: where a run's weights come from and what they were fed, in one JSON file of the run folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L

_PACKAGES = ("bluelm-lightning", "torch", "lightning", "transformers", "timm", "jsonargparse", "webdataset", "wandb")


class Lineage(L.Callback):
    """Writes ``lineage.json`` when training starts, and again when it ends, however it ends::

        {"status": "finished", "started": "2026-01-01T12:00:00+0000", "ended": ..., "first_step": 0, "last_step": 500,
         "parents": [{"path": "runs/a/checkpoints/last.ckpt", "sha256": ..., "use": "init_from", "components": [...]}],
         "command": ["bluelm-fit", "--config", ...], "config": "config.yaml", "data": {...}, "versions": {...}}

    Status is ``running`` (also after a kill -9), ``finished``, ``interrupted`` or ``failed``, then with ``error``.

    Args:
        path: file to write; default: ``lineage.json`` in ``trainer.default_root_dir``.
        parents: checkpoints the weights come from, ``{"path": ..., "use": "ckpt_path" or "init_from", ...}``.
        config: file name of the run's resolved configuration, beside ``path``.
        command: command line; default: this process's.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        parents: Sequence[dict[str, Any]] = (),
        config: str | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.record: dict[str, Any] = {
            "parents": [dict(parent) for parent in parents],
            "command": list(sys.argv if command is None else command),
            "config": config,
        }

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for parent in self.record["parents"]:  # now: a continued run will overwrite last.ckpt
            parent["sha256"] = sha256_of(parent["path"])
        manifest = getattr(trainer.datamodule, "manifest", dict)  # type: ignore[attr-defined]
        kind = next(k for k in type(pl_module).__mro__ if not k.__module__.startswith("torch."))  # FSDP2 renames it
        self.record.update(
            status="running",
            started=_now(),
            stage=f"{kind.__module__}.{kind.__name__}",
            data=manifest(),
            versions=versions(),
            machine={"processes": trainer.world_size, "device": str(trainer.strategy.root_device)},
        )
        self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.record["first_step"] = trainer.global_step  # known only after the checkpoint is restored
        self._write(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.record["error"] = f"{type(exception).__name__}: {exception}"
        self._end(trainer, "interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    def _end(self, trainer: L.Trainer, status: str) -> None:
        if "started" in self.record:
            self.record.update(status=status, ended=_now(), last_step=trainer.global_step)
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        path = self.path or Path(trainer.default_root_dir) / "lineage.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.tmp")
        half.write_text(json.dumps(self.record, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(half, path)  # a reader never sees half a file


def sha256_of(path: str | Path) -> str:
    """Of a file; of a folder (a sharded checkpoint) over the names and contents of its files."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = [f"{file.relative_to(path)} {sha256_of(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's numbers depend on; imports none of them."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
