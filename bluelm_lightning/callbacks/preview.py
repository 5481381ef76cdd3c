"""BatchPreview: what goes into the model, decoded once."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import lightning as L

# Control characters of a data set could steer the terminal; colours, tabs and line ends stay.
_CONTROL = re.compile(r"\x1b(?!\[\d*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


class BatchPreview(L.Callback):
    """Shows the first training batch of a run as the model sees it: tokens, loss mask, image spans.

    The run folder gets it as ``first_batch.txt``, where what is trained stands between ``«`` and ``»``. A resumed run
    does not show it again.

    Args:
        max_chars: the terminal gets at most so many characters; the file gets all.
    """

    def __init__(self, max_chars: int = 4000) -> None:
        self.max_chars = max_chars
        self._done = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._done or trainer.global_step or not trainer.is_global_zero:
            return
        self._done = True
        data = trainer.datamodule  # type: ignore[attr-defined]
        path = Path(trainer.default_root_dir) / "first_batch.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_CONTROL.sub("?", data.preview(batch, color=False)) + "\n", encoding="utf-8")
        color = sys.stdout.isatty()
        text = _CONTROL.sub("?", data.preview(batch, color=color))
        if len(text) > self.max_chars:
            text = text[: self.max_chars] + ("\x1b[0m" if color else "") + " ..."
        pl_module.print(f"first batch, also in {path}:\n{text}")
