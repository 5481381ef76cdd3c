"""Rewards for how an answer is written, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score

_MARKERS = ("<think>", "</think>")


class Format(Reward):
    """1 if the mode was obeyed and the answer ended by itself, else 0.

    Asked to think: one ``<think>``, text, one ``</think>``, text. Not asked: text without a marker.
    """

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(float(self._well_formed(rollout))) for rollout in rollouts]

    def _well_formed(self, rollout: Rollout) -> bool:
        written, asked = rollout.generation, rollout.prompt.thinking and rollout.prompt.budget != 0
        if not written.finished or not (written.answer or "").strip():
            return False
        if not asked:
            return not any(marker in written.text for marker in _MARKERS)
        thought = bool((written.thinking or "").strip())
        return thought and all(written.text.count(marker) == 1 for marker in _MARKERS)


class Repetition(Reward):
    """Minus the share of the answer's n-grams (of token ids) that stood in it before: 0 = none, towards -1 = all.

    Args:
        ngram: tokens of an n-gram; an answer shorter than that repeats nothing.
        tolerance: share that costs nothing; what is above it is scaled to reach -1 at a share of 1.

    Source: the report has a repetition reward; the formula is our choice.
    """

    def __init__(self, ngram: int = 8, tolerance: float = 0.0) -> None:
        if ngram < 1 or not 0 <= tolerance < 1:
            raise ConfigError(f"ngram={ngram}, tolerance={tolerance}; give ngram >= 1, 0 <= tolerance < 1", "ngram")
        self.ngram, self.tolerance = ngram, tolerance

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(self._penalty(rollout.ids.tolist())) for rollout in rollouts]

    def _penalty(self, ids: list[int]) -> float:
        share = repeated_share(ids, self.ngram)
        return -max(0.0, share - self.tolerance) / (1 - self.tolerance)


def repeated_share(ids: Sequence[int], ngram: int) -> float:
    """Share of the n-grams that occurred earlier in the sequence."""
    grams = [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
