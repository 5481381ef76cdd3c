"""What a pipeline did: ``report.json`` (the same for every run), and ``report.md`` to read, with times and examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bluelm_lightning.data.curation.folder import write_text
from bluelm_lightning.data.shard_index import write_json

EXAMPLES = 5


def write_report(output: Path, names: Sequence[str]) -> dict[str, Any]:
    """Writes both from the manifests. Returns what ``report.json`` holds."""
    steps = []
    for name in names:
        manifest = json.loads((output / name / "manifest.json").read_bytes())
        steps.append({"step": name, **{key: manifest[key] for key in ("in", "out", "added", "dropped", "settings")}})
    report = {"steps": steps}
    write_json(output / "report.json", report, indent=1)
    path = output / "timings.json"
    timings = json.loads(path.read_bytes()) if path.is_file() else {}
    examples = "\n\n".join(filter(None, (_examples(output / name) for name in names)))
    text = f"# Curation\n\n{step_table(steps, timings)}\n"
    text += f"\nThe first records that each step dropped; all are in its `dropped.jsonl`.\n\n{examples}\n" * bool(
        examples
    )
    write_text(output / "report.md", text)
    return report


def step_table(steps: Sequence[dict[str, Any]], timings: dict[str, Any]) -> str:
    """A Markdown table: what went in and out of each step, and how fast."""
    lines = ["| step | in | out | dropped | by reason | CPU s | records / CPU s |", "|---|---|---|---|---|---|---|"]
    for step in steps:
        cpu = timings.get(step["step"], {}).get("cpu_seconds", 0)
        speed = f"{step['in'] / cpu:,.0f}" if cpu else ""
        reasons = ", ".join(f"{reason} {count}" for reason, count in step["dropped"].items())
        added = f" (+{step['added']} repeated)" if step["added"] else ""
        cells = [step["step"], step["in"], f"{step['out']}{added}", sum(step["dropped"].values()), reasons]
        lines.append("| " + " | ".join(map(str, [*cells, f"{cpu:.1f}", speed])) + " |")
    return "\n".join(lines)


def _examples(folder: Path) -> str:
    with open(folder / "dropped.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in islice(file, EXAMPLES)]
    if not lines:
        return ""
    return f"## {folder.name}\n\n" + "\n".join(map(_example, lines))


def _example(line: dict[str, Any]) -> str:
    match = line.get("match")
    like = f", like {match.get('source', '')} {match['id']} ({match.get('score', 1)})" if match else ""
    detail = f": {line['detail']}" if line.get("detail") else ""
    return f"- {line.get('source', '')} {line.get('id', '')}: {line['reason']}{detail}{like}"
