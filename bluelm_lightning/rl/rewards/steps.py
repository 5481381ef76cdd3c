"""Steps: is every equation that the thinking writes down true? An answer may be right by two wrongs."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score

_EQUATION = re.compile(r"(?<![\d.+*/=-])(-?\d+)\s*([-+*])\s*(-?\d+)\s*=\s*(-?\d+)(?![\d.]*[+*/-]?\d)")
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Steps(Reward):
    """1 if every equation of two whole numbers in the thinking holds, else 0; no equation, or no thinking, is 1.

    ``3+5=8 8+2=10`` is 1, ``3+5=8 8+2=11`` is 0. Chains such as ``1+2+3=6`` are not looked at. It says nothing of the
    answer, so it goes beside a verifier that does. Our choice.
    """

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(float(steps_hold(rollout.generation.thinking or ""))) for rollout in rollouts]


def steps_hold(text: str) -> bool:
    """Whether every equation in a text is true."""
    return all(_OPERATIONS[sign](int(a), int(b)) == int(c) for a, sign, b, c in _EQUATION.findall(text))
