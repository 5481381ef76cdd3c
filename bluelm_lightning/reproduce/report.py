"""``docs/reproduction.json``, and ``docs/REPRODUCTION.md`` that is made from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluelm_lightning.reproduce.claim import ClaimFile
from bluelm_lightning.reproduce.figures import code_key
from bluelm_lightning.reproduce.jobs import locked

JSON, PAGE = "reproduction.json", "REPRODUCTION.md"

_HEAD = """# The report's claims, measured in miniature

`make reproduce` measures every claim below and writes this page from [reproduction.json](reproduction.json); runs are
kept under `runs/reproduce`, so a call that was stopped goes on, and a second one takes seconds. One claim:
`python -m bluelm_lightning.reproduce --claims 1`. The models are tiny (they train in seconds on a CPU), so a row says
whether the *effect* of the report is there, not how large it is at 3B.

*Gain* is the mean over seeds of the difference that the claim is about, positive when the claim is right, with its 95 %
interval (Student's t over seeds, arms paired by seed). A claim **holds** when the whole interval is above the bar.

| | claim | compared with | gain | 95 % interval | seeds | |
|---|---|---|---|---|---|---|
"""


def update(folder: Path, rows: dict[int, dict[str, Any]], files: Sequence[ClaimFile]) -> dict[str, Any]:
    """Put ``rows`` by number into the JSON file of ``folder``, and write its page again.

    Rows of claims that were not measured this time stay, unless their code has changed since or is gone.

    Args:
        folder: ``docs``.
        rows: of :func:`bluelm_lightning.reproduce.claim.row_of`.
        files: all claims that there are.

    Returns:
        The content of the JSON file.
    """
    keys = {str(file.number): code_key(file.path) for file in files}
    with locked(folder):
        path = folder / JSON
        held = json.loads(path.read_text())["claims"] if path.is_file() else {}
        claims = {number: row for number, row in held.items() if row["key"] == keys.get(number)}
        claims |= {str(number): row for number, row in rows.items()}
        content = {"claims": {number: _rounded(claims[number]) for number in sorted(claims, key=int)}}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page(content), encoding="utf-8")
    return content


def page(content: dict[str, Any]) -> str:
    """The page, from the JSON content alone."""
    claims = content["claims"]
    return _HEAD + "".join(map(_line, claims.items())) + "".join(map(_section, claims.items()))


def verdict(row: dict[str, Any]) -> str:
    return "holds" if row["holds"] else "**does not hold**"


def _line(item: tuple[str, dict[str, Any]]) -> str:
    number, row = item
    gain, interval = f"{row['ours']:.3g} {row['unit']}", f"{row['low']:.3g} to {row['high']:.3g}"
    cells = [number, row["claim"], row["baseline"], gain, interval, row["seeds"], verdict(row)]
    return f"| {' | '.join(map(str, cells))} |\n"


def _section(item: tuple[str, dict[str, Any]]) -> str:
    number, row = item
    gains = ", ".join(f"{gain:.3g}" for gain in row["gains"])
    bar = f"; the bar is {row['bar']:.4g}" if row["bar"] else ""
    details = ", ".join(f"{name} {value:.4g}" for name, value in row["details"].items())
    paragraphs = [
        f"## {number}. {row['claim']}",
        f"The report: {row['report']}",
        f"Ours {row['figure']:.4g}, {row['baseline']}. Gain by seed, {row['unit']}: {gains}{bar}.",
        row["tried"],
        f"Means over seeds: {details}." if details else "",
        f"`{row['command']}`",
    ]
    return "".join(f"\n{text}\n" for text in paragraphs if text)


def _rounded(value: Any) -> Any:
    """Six significant digits: what is below differs between machines."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
