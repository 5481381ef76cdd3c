"""RolloutTable: the rollouts of a step with their pictures and every reward, and histograms of the rewards."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from bluelm_lightning.callbacks.meter import paused
from bluelm_lightning.callbacks.sample_page import SampleRow, render, strip, thumbnail
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Learner, Scored

_COLUMNS = ["id", "source", "mode", "image", "prompt", "reference", "answer", "thinking", "num_tokens", "rewards"]


class RolloutTable(L.Callback):
    """Every N steps writes what the policy wrote and what it was worth.

    ``rollouts/step-000010.jsonl`` holds every rollout of the collection with its rewards by name, total, budget and
    forced tokens; ``.html`` shows the first prompts with pictures; ``.histograms.json`` holds a histogram of each
    reward and of the total. A table and the histograms go to a ``WandbLogger`` too.

    Args:
        every_n_steps: optimizer steps between two tables.
        count: prompts on the page.

    Raises:
        ConfigError: a number below 1, or a stage that writes no rollouts.
    """

    def __init__(self, every_n_steps: int = 50, count: int = 8) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("count", count)):
            if value < 1:
                raise ConfigError(f"{value} is below 1", f"trainer.callbacks.RolloutTable.{key}")
        self.every_n_steps, self.count = every_n_steps, count
        self._step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "scored"):
            kind = type(pl_module).__name__
            raise ConfigError(f"{kind} writes no rollouts; take RolloutTable away", "trainer.callbacks")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        stepped, self._step = step != self._step, step
        if not stepped or step % self.every_n_steps or not trainer.is_global_zero:
            return
        with paused(trainer):
            scored = cast(Learner, pl_module).scored
            path = Path(trainer.default_root_dir) / "rollouts" / f"step-{step:06d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record(item), ensure_ascii=False) + "\n" for item in scored]
            path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")
            bars = {name: histogram(values) for name, values in by_name(scored).items()}
            path.with_suffix(".histograms.json").write_text(json.dumps(bars, indent=1), encoding="utf-8")
            rows = [_row(step, item) for item in scored if item.rollout.group < self.count]
            path.with_suffix(".html").write_text(render(rows, f"Rollouts at step {step}"), encoding="utf-8")
            self._log(trainer, rows, scored)

    def _log(self, trainer: L.Trainer, rows: list[SampleRow], scored: list[Scored]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                step = trainer.global_step - 1  # Lightning numbers the metrics of the step just done from 0
                logger.log_table("rollouts/table", _COLUMNS, [_cells(row) for row in rows], step=step)
                bars: Any = {f"rollouts/{name}": wandb.Histogram(values) for name, values in by_name(scored).items()}
                logger.log_metrics(bars, step=step)


def by_name(scored: list[Scored]) -> dict[str, list[float]]:
    """All present scores of each reward, and the totals."""
    found: dict[str, list[float]] = defaultdict(list)
    for item in scored:
        for name, score in item.rewards.items():
            if score.value is not None:
                found[name].append(score.value)
        if item.total is not None:
            found["total"].append(item.total)
    return dict(found)


def histogram(values: Sequence[float], bins: int = 10) -> dict[str, list[float]]:
    """Counts of ``values`` in ``bins`` equal parts of their range, and the ``bins + 1`` edges."""
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    width = (high - low) / bins or 1.0
    counts = [0.0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return {"counts": counts, "edges": [low + width * place for place in range(bins + 1)]}


def record(item: Scored) -> dict[str, Any]:
    """A rollout as a line of JSON."""
    rollout = item.rollout
    return {
        "id": rollout.prompt.sample.id,
        "group": rollout.group,
        "thinking": rollout.prompt.thinking,
        "budget": rollout.prompt.budget,
        "text": rollout.generation.text,
        "reference": rollout.prompt.sample.answer,
        "thinking_tokens": rollout.thinking_tokens,
        "forced": int(rollout.forced.sum()),
        "truncated": rollout.truncated,
        "step": rollout.step,
        "rewards": {name: score.value for name, score in item.rewards.items()},
        "missing": {name: score.reason for name, score in item.rewards.items() if score.value is None},
        "total": item.total,
    }


def _row(step: int, item: Scored) -> SampleRow:
    rollout, sample, made = item.rollout, item.rollout.prompt.sample, item.rollout.generation
    asked = [turn for turn in sample.messages if turn["role"] != "assistant"]
    prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)
    values = {name: "missing" if s.value is None else f"{s.value:.2f}" for name, s in item.rewards.items()}
    budget = "" if rollout.prompt.budget is None else f", budget {rollout.prompt.budget}"
    total = "none" if item.total is None else f"{item.total:.2f}"
    worth = ", ".join(f"{name} {value}" for name, value in values.items())
    mode = ("thinking" if rollout.prompt.thinking else "non_thinking") + f"{budget}; total {total} = {worth}"
    return SampleRow(
        step, sample.id, sample.source, sample.task, mode, prompt, sample.answer or "", made.answer, made.thinking,
        made.text, made.num_tokens, made.finished, [thumbnail(data) for data in sample.images],
    )  # fmt: skip


def _cells(row: SampleRow) -> list[Any]:
    import wandb

    picture = strip(row.images)
    mode, _, worth = row.mode.partition("; ")
    values = {
        **row.record(),
        "mode": mode,
        "rewards": worth,
        "image": None if picture is None else wandb.Image(picture),
    }
    return [values[column] for column in _COLUMNS]
