"""Loggers: metrics.csv always, and W&B so that it never asks for a login and never stops a run."""

from __future__ import annotations

import netrc
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from bluelm_lightning.cli.run_folder import continue_metrics

_INIT_SECONDS = 30  # W&B's own limit is 90


class RunCSVLogger(CSVLogger):
    """``metrics.csv`` in the run folder itself, continued by a continued run.

    Args:
        folder: the run folder.
        from_step: rows of this step and later are dropped: the checkpoint stands before them.
    """

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        super().__init__(str(folder), name="", version="", flush_logs_every_n_steps=1)
        self._from_step = from_step

    @property
    def log_dir(self) -> str:
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Writer(self.save_dir, self._from_step)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """config.yaml has them."""


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, from_step: int) -> None:
        self._from_step = from_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Lightning's would delete the metrics of the run that is continued."""
        self.metrics_keys, kept = continue_metrics(Path(self.metrics_file_path), self._from_step)
        Path(self.metrics_file_path).unlink(missing_ok=True)
        self.metrics = list(kept)  # type: ignore[arg-type]
        self.save()


def prepare_wandb(loggers: Any, folder: Path) -> None:
    """Point every WandbLogger of the settings to the run folder; offline where there is no account."""
    found = [spec for spec in _specs(loggers) if str(spec.get("class_path")).endswith("WandbLogger")]
    for spec in found:
        arguments = spec["init_args"]
        if arguments.get("save_dir") in (None, "."):
            arguments["save_dir"] = str(folder)
        if arguments.get("name") is None:
            arguments["name"] = folder.name
    if found and "WANDB_MODE" not in os.environ and not _has_account():
        os.environ["WANDB_MODE"] = "offline"  # before wandb.init, which would ask
        print(f"W&B: no account on this machine, so offline; later: wandb sync {folder}/wandb/offline-run-*")


def _specs(loggers: Any) -> list[Any]:
    nodes = loggers if isinstance(loggers, list) else [loggers]
    return [node for node in nodes if hasattr(node, "get") and node.get("class_path")]


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def start_loggers(loggers: list[Logger], settings: dict[str, Any]) -> None:
    """Open W&B runs now, and offline where the server does not answer: tracking must not stop a run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            os.environ.setdefault("WANDB_INIT_TIMEOUT", str(_INIT_SECONDS))
            try:
                logger.experiment  # noqa: B018 - opens the run
            except Exception as error:
                warnings.warn(f"W&B cannot be reached ({str(error).splitlines()[0]}); going on offline", stacklevel=2)
                logger._wandb_init["mode"] = "offline"  # WANDB_MODE is read once a process
                logger.experiment  # noqa: B018
            logger.log_hyperparams(settings)


def close_loggers() -> None:
    """End this process's W&B run, or the next run of the process would write into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
