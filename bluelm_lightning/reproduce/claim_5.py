"""Claim 5: looking up at eight times the length of pre-training.

``python -m bluelm_lightning.reproduce.claim_5`` draws ``docs/needles.png`` from ``docs/reproduction.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.evaluation.needle_map import NeedleMap, draw_needle_maps, needle_map
from bluelm_lightning.recipe.prepare import LENGTHS, LONG, SHORT, held_out_needle
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

SAMPLES = 50  # a length, at depths from 1 % to 99 %
BANDS = 5

CLAIM = Claim(
    number=5,
    claim="After the long-context stage, retrieval at 8 times the pre-training length works; before it does not.",
    report="joint fast decay and long-context activation: 4K to 32K, RoPE becomes YaRN, long data above 80 %.",
    baseline=f"the same model before the stage, right answers at {LONG} tokens, percent",
    unit="points",
    tried=f"A decoder of 0.5M parameters learns to look up words in texts of at most {SHORT} tokens (360 steps of 1024 "
    f"tokens), then the stage takes 120 steps of 2048 tokens up to rows of {LONG}. A text hides one word of each of "
    "four kinds, the question names a kind, a guess within the kind is right 8 % of the time. Measured: greedy answers "
    f"to {SAMPLES} held-out texts a length. YaRN without training: the model from before the stage with the positions "
    "of after it. Also tried: codes of three digits under names of several tokens, which need two steps of attention; "
    "they were not learnt at any length within the steps of the recipe.\n\n"
    "![Right answers by depth and length, before and after](needles.png)",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    before, _ = lab.load(runs.fit("needles", "tiny/mini_needles.yaml"))
    after, data = lab.load(runs.fit("needles_long", "tiny/mini_long.yaml", ["{needles}"]))
    depths = [(n + 0.5) / SAMPLES for n in range(SAMPLES)]
    samples = [held_out_needle(lab.root, length, depths[n], n) for length in LENGTHS for n in range(SAMPLES)]
    maps = {
        "before": needle_map(before.vlm, data.encoder, samples, BANDS),
        "after": needle_map(after.vlm, data.encoder, samples, BANDS),
    }
    details = {_name(title, length): share for title, told in maps.items() for length, share in _by_length(told)}
    after.vlm.load_state_dict(before.vlm.state_dict())  # the model before the stage, with the positions of after it
    longest = [sample for sample in samples if sample.meta["tokens"] == LONG]
    details[f"YaRN without training {LONG}"] = 100 * needle_map(after.vlm, data.encoder, longest).by_length[0]
    for title, told in maps.items():
        details |= {_name(title, length, row): share for length, row, share in _cells(told)}
    ours, baseline = details[_name("after", LONG)], details[_name("before", LONG)]
    return Measured(ours, baseline, ours - baseline, details)


def _name(title: str, length: int, row: int | None = None) -> str:
    """``after 2048``, or ``after 2048 at 0-20 %``."""
    band = "" if row is None else f" at {100 * row // BANDS}-{100 * (row + 1) // BANDS} %"
    return f"{title} {length}{band}"


def _by_length(told: NeedleMap) -> list[tuple[int, float]]:
    return [(length, 100 * share) for length, share in zip(told.lengths, told.by_length)]


def _cells(told: NeedleMap) -> list[tuple[int, int, float]]:
    """(length, row, percent) of every cell."""
    return [
        (length, row, 100 * share)
        for row, shares in enumerate(told.accuracy)
        for length, share in zip(told.lengths, shares)
        if share is not None
    ]


def draw(docs: Path = Path("docs")) -> Path:
    """Draw ``needles.png`` beside ``reproduction.json`` of a folder, from the means over seeds in it.

    Raises:
        ConfigError: the claim has not been measured yet.
    """
    held = docs / "reproduction.json"
    row = json.loads(held.read_text())["claims"].get("5") if held.is_file() else None
    if row is None:
        raise ConfigError("has no figures of claim 5; run python -m bluelm_lightning.reproduce --claims 5", str(held))
    maps = {}
    for title in ("before", "after"):
        shares = {n: [row["details"].get(_name(title, n, band)) for band in range(BANDS)] for n in LENGTHS}
        cells = [[None if (s := shares[n][band]) is None else s / 100 for n in LENGTHS] for band in range(BANDS)]
        whole = [row["details"][_name(title, length)] / 100 for length in LENGTHS]
        depths = [(band + 0.5) / BANDS for band in range(BANDS)]
        maps[f"{title} the long-context stage"] = NeedleMap(list(LENGTHS), depths, cells, whole)
    draw_needle_maps(docs / "needles.png", maps, trained=SHORT)
    return docs / "needles.png"


if __name__ == "__main__":
    try:
        print(draw())
    except ConfigError as error:
        print(f"claim_5: error: {error}", file=sys.stderr)
        sys.exit(2)
