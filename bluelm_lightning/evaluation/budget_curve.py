"""Accuracy against thinking budget, and whether the budget held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.evaluation.scoring import exact_match, wilson_interval
from bluelm_lightning.generation import ThinkingBudget, generate
from bluelm_lightning.generation.budget import ThinkingTokens, count_thinking
from bluelm_lightning.types import Sample


@dataclass
class BudgetPoint:
    """One budget of the curve.

    Args:
        budget: most thinking tokens; None = free.
        accuracy: share of right answers.
        low: lower end of its 95 % interval.
        high: upper end.
        overshoot: greatest number of thinking tokens over the budget; 0 when it held.
        answered: share of rows with an answer that is not blank.
        mean_thinking_tokens: tokens spent.
    """

    budget: int | None
    accuracy: float
    low: float
    high: float
    overshoot: int
    answered: float
    mean_thinking_tokens: float


def budget_curve(
    vlm: VisionLanguageModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    budgets: Sequence[int | None],
    rule: ThinkingBudget,
    max_new_tokens: int = 128,
    batch_size: int = 128,
) -> list[BudgetPoint]:
    """Greedy answers to the last turn of each sample, asked to think, under each budget.

    Args:
        vlm: the model.
        encoder: of the prompts.
        samples: with reference answers.
        budgets: thinking tokens; None = free. A budget of 0 asks without thinking.
        rule: reserve and closing text.
        max_new_tokens: limit of new tokens.
        batch_size: prompts decoded together.
    """
    tokens = ThinkingTokens.of(encoder.tokenizer)
    points = []
    for budget in budgets:
        prompts = [encoder.prompt(sample, thinking=budget != 0) for sample in samples]
        written = generate(
            vlm, prompts, encoder.tokenizer, max_new_tokens, budget=rule.of(budget), batch_size=batch_size
        )
        right = sum(exact_match(g.answer, str(s.answer)) for s, g in zip(samples, written))
        spent = [count_thinking(torch.tensor(g.ids, dtype=torch.long), tokens) for g in written]
        low, high = wilson_interval(right, len(samples))
        over = max([0, *(n - budget for n in spent if budget is not None)])
        answered = sum(bool(g.answer) for g in written) / len(samples)
        mean = sum(spent) / len(samples)
        points.append(BudgetPoint(budget, right / len(samples), low, high, over, answered, mean))
    return points


def draw_budget_curve(path: Path, curves: dict[str, list[BudgetPoint]]) -> None:
    """A PNG: accuracy with its interval against mean thinking tokens allowed, one line a curve; free stands last."""
    from matplotlib.figure import Figure  # no display, no global state

    figure = Figure(figsize=(6.4, 3.8))
    axis: Any = figure.subplots()
    for name, points in curves.items():
        places = range(len(points))
        axis.plot(places, [p.accuracy for p in points], marker="o", label=name)
        axis.fill_between(places, [p.low for p in points], [p.high for p in points], alpha=0.2)
        axis.set_xticks(list(places), ["free" if p.budget is None else str(p.budget) for p in points])
    axis.set_xlabel("thinking budget, tokens")
    axis.set_ylabel("held-out accuracy")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def log_budget_curve(run: Any, curves: dict[str, list[BudgetPoint]], name: str = "budget_curve") -> None:
    """The same as a chart of a W&B run, and a table of every figure beside it.

    Args:
        run: what ``wandb.init`` returned, or ``WandbLogger.experiment``.
        curves: points by the name of their curve.
        name: of the chart; the table is ``NAME_points``.
    """
    import wandb

    columns: list[Any] = ["curve", *(field.name for field in fields(BudgetPoint))]
    rows = [[label, *astuple(point)] for label, points in curves.items() for point in points]
    last = 1 + max([0, *(point.budget or 0 for points in curves.values() for point in points)])
    places: list[Any] = [[last if p.budget is None else p.budget for p in points] for points in curves.values()]
    heights: list[Any] = [[p.accuracy for p in points] for points in curves.values()]
    chart = wandb.plot.line_series(
        xs=places,
        ys=heights,
        keys=list(curves),
        title="held-out accuracy by thinking budget",
        xname="thinking budget, tokens (the last: free)",
    )
    run.log({name: chart, f"{name}_points": wandb.Table(columns, rows)})
