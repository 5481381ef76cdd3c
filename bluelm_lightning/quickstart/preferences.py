"""Preferences: of two answers to one question the right one is chosen, in both modes, with and without a picture.

Our choice: the other answer makes one slip and goes on from there, so that neither its form nor its length gives it
away. Questions are those of `digits` and `arithmetic`, with their splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from bluelm_lightning.data.pairs import CHOSEN, REJECTED
from bluelm_lightning.quickstart.arithmetic import arithmetic
from bluelm_lightning.quickstart.digits import digit_sums
from bluelm_lightning.types import Message, Sample

_STEP = re.compile(r"(-?\d+)([+-]\d+)=(-?\d+)")
_SLIPS = (-10, -2, -1, 1, 2, 10)


def preferences(split: str, count: int, seed: int = 0) -> Iterator[Sample]:
    """Records of a `PreferenceDataModule`: by turns digits in a picture and a sum in writing; half of each think.

    Args:
        split: "train" or "test"; no scan and no sum is in both.
        count: pairs.
    """
    sums, texts = digit_sums(split, (count + 1) // 2, seed), arithmetic(split, count // 2, seed)
    for index in range(count):
        yield _pair(next(texts if index % 2 else sums), Random(f"preferences/{split}/{seed}/{index}"))


def _pair(sample: Sample, rng: Random) -> Sample:
    """The conversation up to the question, with its own answer and one that is wrong."""
    *asked, right = sample.messages
    slip, wrong = rng.choice(_SLIPS), Message(role="assistant", content="")
    if "thinking" in right:
        steps = len(_STEP.findall(right["thinking"]))
        wrong["thinking"] = slipped(right["thinking"], rng.randrange(steps), slip)
    wrong["content"] = str(int(right["content"]) + slip)
    pair = {key: {k: v for k, v in turn.items() if k != "role"} for key, turn in ((CHOSEN, right), (REJECTED, wrong))}
    return replace(sample, source="preferences", messages=asked, meta=pair)


def slipped(trace: str, first: int, slip: int) -> str:
    """A trace whose step number ``first`` is off by ``slip``, carried on: ``"1+2=3 3+4=7", 0, 1 -> "1+2=4 4+4=8"``."""
    places = iter(range(trace.count("=")))

    def changed(step: re.Match[str]) -> str:
        place = next(places)
        before, after = int(step[1]) + slip * (place > first), int(step[3]) + slip * (place >= first)
        return f"{before}{step[2]}={after}"

    return _STEP.sub(changed, trace)
