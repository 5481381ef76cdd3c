"""OnlineEvaluation: how many held-out questions the model answers while it trains."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import lightning as L

from bluelm_lightning.callbacks import names
from bluelm_lightning.callbacks.continued import drop_later
from bluelm_lightning.callbacks.meter import paused
from bluelm_lightning.callbacks.samples import undisturbed
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Generation, Sample, StageData, StageModel

_FILE = "evaluations.jsonl"
MODES = {"non_thinking": False, "thinking": True}


class OnlineEvaluation(L.Callback):
    """Every N steps answers held-out prompts greedily, in both modes, and logs the share of right answers by task.

    ``eval/accuracy/TASK/MODE`` to the loggers, once a measurement, and a line for each task and mode to
    ``evaluations.jsonl`` in the run folder. The task is the sample's, else its source. Training goes on as if nothing
    had happened: random states and each module's mode are restored. All processes answer the same prompts, because
    where the weights are sharded each forward pass needs all of them; the first one writes.

    Args:
        every_n_steps: optimizer steps between two measurements.
        count: prompts, spread evenly over ``data.val_sources``; each is answered twice.
        max_new_tokens: limit of an answer; one that is cut before its end of thinking counts as wrong.

    Raises:
        ConfigError: a number below 1, or ``data.val_sources`` hold no conversation.
    """

    def __init__(self, every_n_steps: int = 500, count: int = 128, max_new_tokens: int = 256) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("count", count), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ConfigError(f"{value} is below 1", f"trainer.callbacks.OnlineEvaluation.{key}")  # type: ignore[attr-defined]
        self.every_n_steps, self.count, self.max_new_tokens = every_n_steps, count, max_new_tokens
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        drop_later(trainer, _FILE)
        data: StageData = trainer.datamodule  # type: ignore[attr-defined]
        if not data.held_out_prompts(self.count, thinking=False):
            raise ConfigError("hold no conversation, which OnlineEvaluation asks; name some", "data.val_sources")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped or trainer.global_step % self.every_n_steps:
            return
        with paused(trainer), undisturbed(pl_module), trainer.precision_plugin.val_step_context():
            stage, data = cast(StageModel, pl_module), cast(StageData, trainer.datamodule)  # type: ignore[attr-defined]
            rows = [row for mode in MODES for row in self._answer(stage, data, mode)]
        values = {names.accuracy(row["task"], row["mode"]): row["accuracy"] for row in rows}
        # for a checkpoint's monitor; not to the loggers, to which Lightning would repeat it until the next measurement
        pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)  # Lightning numbers the step just done from 0
        if trainer.is_global_zero:
            self._write([{"step": trainer.global_step, **row} for row in rows], Path(trainer.default_root_dir))

    def _answer(self, stage: StageModel, data: StageData, mode: str) -> list[dict[str, Any]]:
        prompts = data.held_out_prompts(self.count, MODES[mode])
        written = stage.generate([encoded for _, encoded in prompts], max_new_tokens=self.max_new_tokens)
        groups: dict[str, list[tuple[Sample, Generation]]] = defaultdict(list)
        for (sample, _), made in zip(prompts, written):
            groups[sample.task or sample.source].append((sample, made))
        return [
            {
                "task": task,
                "mode": mode,
                "accuracy": sum(data.score(sample, made) for sample, made in items) / len(items),
                "n": len(items),
                "mean_tokens": sum(made.num_tokens for _, made in items) / len(items),
            }
            for task, items in sorted(groups.items())
        ]

    def _write(self, rows: list[dict[str, Any]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _FILE).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
