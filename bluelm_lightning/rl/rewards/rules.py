"""Rewards by rule: is the answer that stands after the thinking right?

No answer (thinking never closed, or cut by the limit) is wrong: 0. No reference to compare with is a missing score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
_OPTION = re.compile(r"^\(?([A-Za-z])\)?[.:)]?(?:\s|$)")


class RuleReward(Reward):
    """Compares one answer with one reference. A subclass defines :meth:`right`."""

    verdict = True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [self._one(rollout) for rollout in rollouts]

    def right(self, answer: str, reference: str) -> bool:
        """Whether ``answer`` agrees with ``reference``."""
        raise TypeError(f"{type(self).__name__} must define right(answer, reference)")

    def _one(self, rollout: Rollout) -> Score:
        reference, answer = rollout.prompt.sample.answer, rollout.generation.answer
        if reference is None:
            return Score(None, "the sample has no reference answer")
        return Score(float(answer is not None and self.right(answer, reference)))


class ExactMatch(RuleReward):
    """Equal after lower-casing and dropping spaces at the ends and a final full stop."""

    def right(self, answer: str, reference: str) -> bool:
        return plain(answer) == plain(reference)


class NumericMatch(RuleReward):
    """The last number of the answer (or of its ``\\boxed{}``) is the reference's.

    Args:
        tolerance: greatest difference, as a share of the reference; a reference of 0 wants exactly 0.
    """

    def __init__(self, tolerance: float = 1e-6) -> None:
        if not tolerance >= 0:
            raise ConfigError(f"{tolerance} is negative", "tolerance")
        self.tolerance = tolerance

    def right(self, answer: str, reference: str) -> bool:
        found, wanted = last_number(boxed(answer) or answer), last_number(boxed(reference) or reference)
        if found is None or wanted is None:
            return False
        return abs(found - wanted) <= self.tolerance * abs(wanted)


class MultipleChoice(RuleReward):
    """The answer begins with the reference's letter: ``B``, ``(B)``, ``B. because``, ``\\boxed{B}``."""

    def right(self, answer: str, reference: str) -> bool:
        found, wanted = (_OPTION.match((boxed(text) or text).strip()) for text in (answer, reference))
        return found is not None and wanted is not None and found[1].lower() == wanted[1].lower()


def plain(text: str) -> str:
    """What :class:`ExactMatch` compares."""
    return text.strip().rstrip(".").strip().lower()


def boxed(text: str) -> str | None:
    """The inside of the last ``\\boxed{...}``, braces balanced; None if there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin, len(text)):
        if text[place] == "}" and depth == 0:
            return text[begin:place]
        depth += {"{": 1, "}": -1}.get(text[place], 0)
    return None


def last_number(text: str) -> float | None:
    """The last number written in a text; commas between digits are dropped."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
