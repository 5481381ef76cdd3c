"""Claim 8: key data resampling reaches a held-out loss in fewer tokens than uniform mixing."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from bluelm_lightning.recipe.prepare import held_out_needle
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.jobs import locked
from bluelm_lightning.reproduce.lab import Lab
from bluelm_lightning.types import Sample

NAMES = ("text", "arithmetic", "needle_short")
STEPS, EVERY, STEP_TOKENS = 400, 20, 1024
TARGET = 2.3  # nats, mean of the three held-out losses

CLAIM = Claim(
    number=8,
    claim="Key data resampling reaches a held-out loss in fewer tokens than uniform mixing.",
    report="key data resampling is among what makes its data efficient; it is not defined.",
    baseline="thousand tokens of uniform mixing",
    unit="% more tokens without it",
    tried="tried",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    held_out = json.dumps([{"path": str(_held_out(lab, name)), "name": name} for name in NAMES])
    options = [
        lab.sources(dict.fromkeys(NAMES, 1.0)),
        f"--data.val_sources={held_out}".replace("{", "{{").replace("}", "}}"),
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={EVERY}",
        "--model.schedule={{class_path: Constant, init_args: {{warmup_steps: 10}}}}",
    ]
    config = "tiny/mini_teacher.yaml"
    uniform = runs.fit("mix_uniform", config, (), options)
    resampling = ["--config=fragments/resampling.yaml", "--trainer.callbacks.ledger=null"]
    resampling += ["--trainer.callbacks.every_n_steps=10", "--trainer.callbacks.policy.floor=0.2"]
    ours = runs.fit("mix_resampled", config, (), [*resampling, *options])
    needed = [tokens_to(curve(folder), TARGET) / 1000 for folder in (ours, uniform)]
    ends = {
        f"{arm}, {name}": curve(folder, name)[-1][1]
        for arm, folder in (("resampled", ours), ("uniform", uniform))
        for name in NAMES
    }
    return Measured(needed[0], needed[1], 100 * (needed[1] / needed[0] - 1), ends)


def curve(folder: Path, *names: str) -> list[tuple[float, float]]:
    """(tokens, mean held-out loss over sources), a mean over three validations."""
    keys = [f"val/loss/{name}" for name in names or NAMES]
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(keys[0])]
    points = [((int(row["step"]) + 1) * STEP_TOKENS, sum(float(row[key]) for key in keys) / len(keys)) for row in rows]
    return [(now[0], (a[1] + b[1] + now[1]) / 3) for a, b, now in zip(points, points[1:], points[2:])]


def tokens_to(points: Sequence[tuple[float, float]], target: float) -> float:
    """Where the curve first falls to the target, between two points on a line; the end where it does not."""
    for (x, y), (next_x, next_y) in pairwise(points):
        if next_y <= target:
            return next_x if y <= target else x + (next_x - x) * (y - target) / (y - next_y)
    return points[-1][0]


def _held_out(lab: Lab, name: str) -> Path:
    """Shards of held-out samples, written once."""
    from bluelm_lightning.data.convert import write_shards

    folder = lab.root / "held_out" / name
    with locked(folder.with_suffix(".lock")):
        if not (folder / "manifest.json").is_file():
            write_shards(_samples(lab, name), folder, overwrite=True)
    return folder


def _samples(lab: Lab, name: str) -> list[Sample]:
    if name == "needle_short":
        return [held_out_needle(lab.root, 200, n / 39, n) for n in range(40)]
    return lab.held_out(name)[:100]
