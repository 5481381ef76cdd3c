"""What the budget curriculum and Group Overlong each do in reinforcement learning: four arms, three seeds.

    make quickstart
    python benchmarks/rl_ablation.py

Each arm starts from the quickstart's fine-tuned model and differs from ``tiny/rl.yaml`` by what its name says. Runs are
kept in ``runs/ablation`` and not repeated. Writes ``docs/rl.json`` and ``docs/RL.md``: about 25 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

SEEDS = (0, 1, 2)
PARENT = Path("runs/quickstart/sft")
ROOT = Path("runs/ablation")
ARMS: dict[str, tuple[bool, dict[str, Any] | None]] = {  # name -> budget curriculum, length penalty
    "curriculum and Group Overlong": (True, {}),
    "Group Overlong alone": (False, {}),
    "curriculum alone": (True, None),
    "neither": (False, None),
}
FORMULAS = {  # what Group Overlong could have been
    "min_max": (False, {"formula": "min_max"}),
    "soft_overlong": (False, {"formula": "soft_overlong", "max_tokens": 56, "cache_tokens": 40}),
}
COUNT = 300  # held-out pictures
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t at 97.5 % for n runs
_HEAD = """# Reinforcement learning in miniature

`python benchmarks/rl_ablation.py`, after `make quickstart`: {arms} arms of {steps} steps from the same fine-tuned
model, {seeds} seeds each (order, modes, budgets and sampling), {count} held-out pictures. A cell is the mean over seeds
and its 95 % interval (Student's t). The fine-tuning data: {slips:.0%} of the steps in the digit traces are one too
many, {terse:.0%} of the traces leave the reading out and {again:.0%} add a second time, so there are slips and a habit
of thinking twice to unlearn. Group Overlong weighs {weight} beside 1 for a right answer.
"""


def settings(curriculum: bool, penalty: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """The packaged stage with what an arm changes."""
    config = yaml.safe_load(files("bluelm_lightning").joinpath("configs/tiny/rl.yaml").read_text())
    if not curriculum:
        del config["trainer"]["callbacks"]
    router = config["model"]["init_args"]["rewards"]["init_args"]
    if penalty is None:
        del router["rewards"]["length"], router["weights"]["length"]
    else:
        router["rewards"]["length"]["init_args"] = penalty
    config["data"]["init_args"]["seed"] = seed
    return {**config, "seed_everything": seed}


def run(name: str, seed: int) -> None:
    """One run and its figures, ``figures.json`` in its folder; nothing if they are there."""
    folder = ROOT / f"{name.replace(' ', '_')}-{seed}"
    if (folder / "figures.json").exists():
        return
    ROOT.mkdir(parents=True, exist_ok=True)
    config = ROOT / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(settings(*{**ARMS, **FORMULAS}[name], seed)))
    fit = ["--config", str(config), "--run_dir", str(folder), "--init_from", str(PARENT / "checkpoints" / "last.ckpt")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (ROOT / f"{folder.name}.log").open("w") as log:
        _call(["-m", "bluelm_lightning.cli.fit", *fit], log, env)
        _call([__file__, "--measure", str(folder)], log, env)


def _call(arguments: list[str], log: Any, env: dict[str, str]) -> None:
    subprocess.run([sys.executable, *arguments], stdout=log, stderr=log, env=env, check=True)


def measure_run(folder: Path) -> None:
    from dataclasses import asdict

    from bluelm_lightning.quickstart.rl_report import measure

    figures, curve = measure(folder, COUNT)
    (folder / "figures.json").write_text(json.dumps({**figures, "curve": [asdict(point) for point in curve]}, indent=1))


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval over runs."""
    mean = statistics.fmean(values)
    half = _T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one arm over its seeds; ``area`` is the mean accuracy over the budgets of the curve."""
    out: dict[str, Any] = {
        key: interval([run[key] for run in runs]) for key in ("mean_at_8", "greedy", "thinking_tokens")
    }
    out["area"] = interval([statistics.fmean(p["accuracy"] for p in run["curve"]) for run in runs])
    out["curve"] = [
        {"budget": points[0]["budget"], **interval([point["accuracy"] for point in points])}
        for points in zip(*(run["curve"] for run in runs))
    ]
    points = [point for run in runs for point in run["curve"]]
    return out | {"overshoot": max(p["overshoot"] for p in points), "answered": min(p["answered"] for p in points)}


def table(before: dict[str, Any], arms: dict[str, Any]) -> str:
    """Markdown: a column an arm, a row a figure."""

    def cell(value: dict[str, float], form: str) -> str:
        return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"

    lines = ["| | fine-tuned | " + " | ".join(arms) + " |", "|---" * (len(arms) + 2) + "|"]
    for key, label, form in (
        ("mean_at_8", "mean of 8 at temperature 1", ".1%"),
        ("greedy", "greedy", ".1%"),
        ("thinking_tokens", "thinking tokens, sampled", ".1f"),
        ("area", "mean accuracy over the budgets", ".1%"),
    ):
        lines.append(
            f"| {label} | {before[key]:{form}} | " + " | ".join(cell(a[key], form) for a in arms.values()) + " |"
        )
    for place, point in enumerate(before["curve"]):
        label = "no limit" if point["budget"] is None else f"budget {point['budget']}"
        cells = (cell(arm["curve"][place], ".1%") for arm in arms.values())
        lines.append(f"| {label} | {point['accuracy']:.1%} | " + " | ".join(cells) + " |")
    worst = max(arm["overshoot"] for arm in arms.values()), min(arm["answered"] for arm in arms.values())
    return (
        "\n".join(lines)
        + f"\n\nGreatest overshoot {worst[0]} tokens; answered at every budget: {worst[1]:.1%} of rows.\n"
    )


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure_run(Path(sys.argv[2]))
        return
    from bluelm_lightning.quickstart.prepare import SLIP_SHARE, STYLES

    if not (PARENT / "figures.json").exists():
        measure_run(PARENT)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: run(*job), [(name, seed) for seed in SEEDS for name in [*ARMS, *FORMULAS]]))
    read = {
        name: [json.loads((ROOT / f"{name.replace(' ', '_')}-{s}" / "figures.json").read_text()) for s in SEEDS]
        for name in [*ARMS, *FORMULAS]
    }
    before = json.loads((PARENT / "figures.json").read_text())
    before["area"] = statistics.fmean(point["accuracy"] for point in before["curve"])
    arms = {name: summarise(runs) for name, runs in read.items()}
    base = settings(True, {}, 0)
    facts = {"arms": len(ARMS), "steps": base["trainer"]["max_steps"], "seeds": len(SEEDS), "count": COUNT}
    facts |= {"slips": SLIP_SHARE, "terse": STYLES["terse"], "again": STYLES["again"]}
    facts["weight"] = base["model"]["init_args"]["rewards"]["init_args"]["weights"]["length"]
    shown = {"group (ours)": arms["Group Overlong alone"], **{name: arms[name] for name in FORMULAS}}
    text = _HEAD.format(**facts) + "\n" + table(before, {name: arms[name] for name in ARMS})
    text += "\n## Formulas of the length penalty, without a curriculum\n\n" + table(before, shown)
    Path("docs/rl.json").write_text(json.dumps({"fine_tuned": before, "arms": arms}, indent=1) + "\n")
    Path("docs/RL.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
