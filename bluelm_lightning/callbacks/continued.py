"""Files that callbacks add lines to, where a run goes on from a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightning as L


def drop_later(trainer: L.Trainer, name: str) -> None:
    """Take out of ``name`` in the run folder the rows after the checkpoint: they will be written again.

    A row is a JSON object on a line, with its ``step``. For ``on_train_start``; a run from the beginning keeps all.
    """
    path = Path(trainer.default_root_dir) / name
    if trainer.ckpt_path is None or not trainer.is_global_zero or not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").split("\n") if _stands(line, trainer.global_step)]
    half = path.with_name(f".{name}.tmp")
    half.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(half, path)


def _stands(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:  # a kill has cut it
        return False
