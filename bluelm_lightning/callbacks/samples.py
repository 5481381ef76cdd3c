"""SampleTable: what the model writes, with the pictures it saw, every N steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from bluelm_lightning.callbacks import names
from bluelm_lightning.callbacks.meter import paused
from bluelm_lightning.callbacks.sample_page import SampleRow, render, strip, thumbnail
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Generation, Sample, StageData, StageModel

_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
_COLUMNS = [
    "id", "source", "task", "mode", "image", "prompt", "reference", "answer", "thinking", "num_tokens", "finished"
]  # fmt: skip


class SampleTable(L.Callback):
    """Every N steps lets the model answer a few fixed prompts, with and without thinking.

    Writes ``samples/step-000500.jsonl`` and a page with the pictures, ``samples/step-000500.html``, into the run
    folder, and a table to W&B where there is a ``WandbLogger``. Training goes on as if nothing had happened: random
    states and each module's mode are restored. The first process generates while the others wait at the next step. Not
    supported yet where the weights are sharded (FSDP, ModelParallelStrategy, DeepSpeed): warns once and does nothing.

    Args:
        every_n_steps: optimizer steps between two tables.
        count: prompts, the first of the validation data.
        max_new_tokens: limit a generation.
        thinking: modes, in order; default: both.
    """

    def __init__(
        self, every_n_steps: int = 500, count: int = 8, max_new_tokens: int = 256, thinking: list[bool] | None = None
    ) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("count", count), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ConfigError(f"{value} is below 1", f"trainer.callbacks.SampleTable.{key}")  # type: ignore[attr-defined]
        self.every_n_steps, self.count, self.max_new_tokens = every_n_steps, count, max_new_tokens
        self.thinking = [False, True] if thinking is None else thinking
        self._step = 0
        self._possible = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._possible = not isinstance(trainer.strategy, _SHARDED)
        if not self._possible:
            name = type(trainer.strategy).__name__
            rank_zero_warn(f"SampleTable: {name} shards the weights, not supported yet; no samples are generated")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped or trainer.global_step % self.every_n_steps or not self._possible or not trainer.is_global_zero:
            return
        with paused(trainer), undisturbed(pl_module), trainer.precision_plugin.val_step_context():
            stage = cast(StageModel, pl_module)
            rows = [row for thinking in self.thinking for row in self._generate(trainer, stage, thinking)]
            if not rows:
                rank_zero_warn("SampleTable: the data has no conversation to prompt with; no samples are generated")
                self._possible = False
                return
            self._write(rows, trainer)
            self._log(rows, trainer)

    def _generate(self, trainer: L.Trainer, pl_module: StageModel, thinking: bool) -> list[SampleRow]:
        data: StageData = trainer.datamodule  # type: ignore[attr-defined]
        prompts = data.sample_prompts(self.count, thinking)
        if not prompts:
            return []
        written = pl_module.generate([encoded for _, encoded in prompts], max_new_tokens=self.max_new_tokens)
        mode = "thinking" if thinking else "non_thinking"
        return [_row(trainer.global_step, mode, sample, text) for (sample, _), text in zip(prompts, written)]

    def _write(self, rows: list[SampleRow], trainer: L.Trainer) -> None:
        path = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row.record(), ensure_ascii=False) + "\n" for row in rows]
        path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")
        path.with_suffix(".html").write_text(render(rows, f"Samples at step {trainer.global_step}"), encoding="utf-8")

    def _log(self, rows: list[SampleRow], trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # Lightning numbers the metrics of the step just done from 0
                logger.log_table(names.SAMPLES, _COLUMNS, [_cells(row) for row in rows], step=trainer.global_step - 1)


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every random state and every submodule's mode is as before."""
    modes = [(part, part.training) for part in module.modules()]
    with isolate_rng(), torch.no_grad():
        try:
            module.eval()
            yield
        finally:
            for part, training in modes:
                part.training = training


def _row(step: int, mode: str, sample: Sample, made: Generation) -> SampleRow:
    answers = [n for n, turn in enumerate(sample.messages) if turn["role"] == "assistant"]
    end = answers[-1] if answers else len(sample.messages)
    asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in sample.messages[:end])
    reference = sample.answer if sample.answer is not None else sample.messages[end]["content"] if answers else ""
    return SampleRow(
        step, sample.id, sample.source, sample.task, mode, asked, reference, made.answer, made.thinking, made.text,
        made.num_tokens, made.finished, [thumbnail(data) for data in sample.images],
    )  # fmt: skip


def _cells(row: SampleRow) -> list[Any]:
    import wandb

    picture = strip(row.images)
    values = {**row.record(), "image": None if picture is None else wandb.Image(picture)}
    return [values[column] for column in _COLUMNS]
