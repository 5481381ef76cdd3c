"""The folder that a run owns: config.yaml, lineage.json, metrics.csv, checkpoints/.

A continued run keeps its folder: it adds config-2.yaml and lineage-2.json, and goes on in the same metrics.csv.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import ConfigError

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_SHARED = "BLUELM_RUN_DIR"  # from the first process to those that Lightning starts: the default name holds the time


class RunFolder:
    """Where a run writes.

    Args:
        run_dir: ``--run_dir``.
        ckpt_path: ``--ckpt_path``; ``last`` is the last checkpoint of ``run_dir``, else of the newest run of the stage.
        config_names: ``--config`` files; the first one gives the default folder its name.

    Attributes:
        path: absolute.
        ckpt_path: the checkpoint to continue from; None = a new run.

    Raises:
        ConfigError: a checkpoint that is not there, or a folder that holds another run.
    """

    def __init__(self, run_dir: str | None, ckpt_path: str | None, config_names: Sequence[str]) -> None:
        stem = _stem(config_names)
        self.ckpt_path = _find_checkpoint(ckpt_path, run_dir, stem) if ckpt_path else None
        owner = self.ckpt_path.parent.parent if self.ckpt_path and self.ckpt_path.parent.name == "checkpoints" else None
        chosen = Path(run_dir) if run_dir else owner or _default(stem)
        self.path = chosen.expanduser().absolute()
        self.continued = owner is not None and owner.expanduser().absolute() == self.path
        if not self.continued and _is_first_process() and self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigError(
                f"{chosen} holds another run; give an empty folder, or continue it with --ckpt_path last", "--run_dir"
            )

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def claim(self) -> None:
        """Make the folder; processes that Lightning starts from here find it."""
        self.path.mkdir(parents=True, exist_ok=True)
        os.environ[_SHARED] = str(self.path)

    def release(self) -> None:
        """Remove the folder if nothing was written: a mistake found late leaves no trace, and the name is free."""
        if _is_first_process():
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def next_file(self, name: str) -> Path:
        """``config.yaml``, then ``config-2.yaml``, ..."""
        stem, dot, ending = name.partition(".")
        path, number = self.path / name, 1
        while path.exists():
            number += 1
            path = self.path / f"{stem}-{number}{dot}{ending}"
        return path


def _stem(config_names: Sequence[str]) -> str:
    """``sft`` of ``tiny/sft.yaml``; the folder's own stem where a run's saved config.yaml is given back."""
    first = Path(config_names[0]) if config_names else Path("run")
    saved = re.fullmatch(r"config(-\d+)?", first.stem) and first.absolute().parent.name
    return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", saved) if saved else first.stem


def _default(stem: str) -> Path:
    if shared := not _is_first_process() and os.environ.get(_SHARED):
        return Path(shared)
    processes = max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if processes > 1 and any(name in os.environ for name in _RANK_VARIABLES):  # torchrun or srun started them all
        raise ConfigError(f"is missing; {processes} processes must agree on the folder, so give one", "--run_dir")
    base = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 100))]
    return next(path for path in names if not path.exists())


def _is_first_process() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in _RANK_VARIABLES)


def _find_checkpoint(ckpt_path: str, run_dir: str | None, stem: str) -> Path:
    if ckpt_path != "last":
        path = Path(ckpt_path).expanduser()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"{ckpt_path} {what}; give a .ckpt file, or `last`", "--ckpt_path")
        return path
    runs = [Path(run_dir).expanduser()] if run_dir else sorted(Path("runs").glob(f"{stem}-*"))
    found = [path for run in runs if (path := run / "checkpoints" / "last.ckpt").is_file()]
    if not found:
        where = run_dir or f"runs/{stem}-*"
        fix = "start without --ckpt_path, or name a file"
        raise ConfigError(f"no checkpoints/last.ckpt in {where}; {fix}", "--ckpt_path")
    return max(found, key=lambda path: path.stat().st_mtime)


def continue_metrics(path: Path, step: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Header and rows of a metrics.csv up to a checkpoint: what was logged after it will be logged again."""
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [dict(row) for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        return list(reader.fieldnames or []), rows
