"""What reinforcement learning changed: held-out scans before and after it, sampled, greedy and under budgets."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bluelm_lightning.cli.load import load_run
from bluelm_lightning.evaluation import exact_match, wilson_interval
from bluelm_lightning.evaluation.budget_curve import BudgetPoint, budget_curve, draw_budget_curve
from bluelm_lightning.generation import Sampling, ThinkingBudget, roll_out
from bluelm_lightning.quickstart.digits import digit_sums
from bluelm_lightning.rl.forensics import mean, mode_obedience, spread
from bluelm_lightning.types import Prompt, Rollout

COPIES = 8
BUDGETS = (0, 4, 8, 12, 16, 20, 24, 28, 32, 48, None)
RULE = ThinkingBudget(answer_reserve=8)
_MOST_TOKENS = 72


def compare(before: Path, after: Path, out: Path, count: int = 300) -> dict[str, Any]:
    """Figures of both runs on ``count`` held-out pictures, printed, and ``out/budget_curve.png``.

    ``mean_at_8`` is the share of right answers of eight samples at temperature 1, with its 95 % interval over pictures.
    """
    pairs = {"before": measure(before, count), "after": measure(after, count)}
    curves = {f"{name} reinforcement learning": pair[1] for name, pair in pairs.items()}
    draw_budget_curve(out / "budget_curve.png", curves)
    summary: dict[str, Any] = {
        key: {name: pair[0][key] for name, pair in pairs.items()}
        for key in ("mean_at_8", "mean_at_8_interval", "greedy", "greedy_interval", "thinking_tokens")
    }
    summary["mode"] = pairs["after"][0]["mode"]
    summary["budget_curve"] = [asdict(point) for point in pairs["after"][1]]
    summary["budget_curve_before"] = [asdict(point) for point in pairs["before"][1]]
    _print(summary)
    return summary


def measure(run: Path, count: int) -> tuple[dict[str, Any], list[BudgetPoint]]:
    """Figures and budget curve of a finished run."""
    stage, data = load_run(run)
    samples = list(digit_sums("test", count, seed=0, thinking=True))

    def ask(thinking: bool, sampling: Sampling, copies: int) -> list[Rollout]:
        prompts = [Prompt(s, data.encoder.prompt(s, thinking), thinking, seed=i) for i, s in enumerate(samples)]
        return roll_out(stage.vlm, prompts, data.tokenizer, sampling, copies, batch_size=32)

    sampled = ask(True, Sampling(_MOST_TOKENS, temperature=1.0), COPIES)
    greedy, fast = (ask(thinking, Sampling(_MOST_TOKENS), 1) for thinking in (True, False))
    shares = [mean([_right(r) for r in sampled if r.group == group]) for group in range(count)]
    half = 1.96 * spread(shares) / math.sqrt(count)
    right = sum(_right(rollout) for rollout in greedy)
    modes = mode_obedience([*sampled, *fast])
    figures = {
        "mean_at_8": mean(shares),
        "mean_at_8_interval": [mean(shares) - half, mean(shares) + half],
        "greedy": right / count,
        "greedy_interval": list(wilson_interval(right, count)),
        "thinking_tokens": mean([rollout.thinking_tokens for rollout in sampled]),
        "mode": {
            "switch_accuracy": modes["mode/switch_accuracy"],
            "think_leak_rate": modes["mode/think_leak"],
            "empty_think_rate": modes["mode/empty_think"],
        },
    }
    return figures, budget_curve(stage.vlm, data.encoder, samples, BUDGETS, RULE, _MOST_TOKENS)


def _right(rollout: Rollout) -> bool:
    return exact_match(rollout.generation.answer, str(rollout.prompt.sample.answer))


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="digits_sum, held-out scans, thinking")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right")
    for key, label in (("mean_at_8", "mean of 8 at temperature 1"), ("greedy", "greedy")):
        cells = [f"{summary[key][n]:.1%} ({a:.1%} to {b:.1%})" for n, (a, b) in summary[f"{key}_interval"].items()]
        table.add_row(label, *cells)
    table.add_row("thinking tokens", *(f"{value:.1f}" for value in summary["thinking_tokens"].values()))
    for old, new in zip(summary["budget_curve_before"], summary["budget_curve"]):
        label = "no limit" if new["budget"] is None else f"budget {new['budget']}"
        table.add_row(label, *(f"{p['accuracy']:.1%} ({p['low']:.1%} to {p['high']:.1%})" for p in (old, new)))
    Console().print(table)
    mode = "  ".join(f"{name} {value:.1%}" for name, value in summary["mode"].items())
    over, answered = (f(p[k] for p in summary["budget_curve"]) for f, k in ((max, "overshoot"), (min, "answered")))
    print(f"overshoot {over} tokens  rows with an answer {answered:.1%} at least  {mode}")
