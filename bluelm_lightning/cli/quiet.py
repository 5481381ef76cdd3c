"""Lightning's advertisements and the deprecations of its own code, left out of the terminal."""

from __future__ import annotations

import logging
import warnings

_NOISE = ("💡 Tip", "`weights_only` was not set", "TPU available", "GPU available: False")
_SPEAKERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector")


def quiet() -> None:
    """Only what somebody can act upon stays."""
    for name in _SPEAKERS:
        logging.getLogger(name).addFilter(_wanted)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a continued run's
    warnings.filterwarnings("ignore", message="The dirpath has changed from")  # --ckpt_path with a --run_dir of its own
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # no validation data
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")


def _wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)
