"""The quickstart's results: a table, ``summary.json``, and pictures of what the model answered."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bluelm_lightning.evaluation import Answered, TaskResult

Results = dict[str, dict[str, TaskResult]]


def print_table(results: Results) -> None:
    """Task x mode: accuracy with its interval, samples, mean tokens."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out accuracy, both modes from the same weights")
    for column in ("task", "n", "non-thinking", "tokens", "thinking", "tokens"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, modes in results.items():
        fast, slow = modes["non_thinking"], modes["thinking"]
        cells = [cell for result in (fast, slow) for cell in (_share(result), f"{result.mean_tokens:.1f}")]
        table.add_row(task, str(slow.n), *cells)
    Console().print(table)


def _share(result: TaskResult) -> str:
    return f"{result.accuracy:.1%} ({result.low:.1%} to {result.high:.1%})"


def write_summary(path: Path, results: Results, wall_seconds: float, peak_rss_bytes: int, **more: Any) -> None:
    """``summary.json``: ``tasks.<task>.<mode>.{accuracy, n, mean_tokens, ...}``, cost, and whatever else is given."""
    tasks = {task: {mode: asdict(result) for mode, result in modes.items()} for task, modes in results.items()}
    content = {"tasks": tasks, "wall_seconds": wall_seconds, "peak_rss_bytes": peak_rss_bytes, **more}
    path.write_text(json.dumps(content, indent=2) + "\n")


def draw_answers(path: Path, answers: dict[str, list[Answered]], tasks: list[str], columns: int = 4) -> None:
    """A PNG: for each task a row of held-out pictures with the question and what both modes answered."""
    figure, axes = _figure(len(tasks), columns, 3.0, 3.1)
    for row, task in zip(axes, tasks):
        places = [i for i, item in enumerate(answers["thinking"]) if item.sample.task == task]
        chosen = places[:: max(1, len(places) // columns)][:columns]  # far apart: neighbours may share a picture
        for axis, index in zip(row, chosen):
            slow, fast = answers["thinking"][index], answers["non_thinking"][index]
            axis.imshow(_picture(slow.sample.images[0]))
            question = slow.sample.messages[-2]["content"].replace("<image>", "")
            axis.set_title(f"{question}   ({slow.sample.answer})", fontsize=8)
            thought = f"thinks: {slow.generation.thinking}\n{_mark(slow)} {slow.generation.answer}"
            axis.set_xlabel(f"{thought}\ndirect: {_mark(fast)} {fast.generation.answer}", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_accuracy(path: Path, results: Results) -> None:
    """A PNG: accuracy of each task in both modes, with 95 % intervals."""
    figure, axes = _figure(1, 1, 8.0, 3.4)
    axis = axes[0][0]
    for offset, (mode, color) in enumerate((("non_thinking", "#8a9bb0"), ("thinking", "#1f6feb"))):
        points = [modes[mode] for modes in results.values()]
        errors = [[p.accuracy - p.low for p in points], [p.high - p.accuracy for p in points]]
        places = [i + 0.38 * (offset - 0.5) for i in range(len(points))]
        heights = [p.accuracy for p in points]
        bars = axis.bar(places, heights, 0.36, yerr=errors, label=mode.replace("_", "-"), color=color, capsize=2)
        axis.bar_label(bars, [f"{h:.0%}" for h in heights], padding=3, fontsize=8)
    axis.set_xticks(range(len(results)), list(results), fontsize=8)
    axis.tick_params(bottom=True, left=True)
    axis.set_ylim(0, 1.12)
    axis.set_ylabel("held-out accuracy")
    axis.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no display, no global state

    figure = Figure(figsize=(width * columns, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data))


def _mark(item: Answered) -> str:
    return "[right]" if item.right else "[wrong]"
