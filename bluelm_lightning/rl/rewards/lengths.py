"""Group Overlong: a penalty for thinking longer than the group needs to.

Source: BlueLM-2.5-3B names a "Group Overlong" length penalty against over-thinking; its formula is unknown, so this is
our choice. Neighbours, selectable for comparison: DAPO's soft overlong (absolute, looks at the limit alone) and Kimi
k1.5's scaling between the shortest and longest of the group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.advantages import overlong_penalty
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.rl.rewards.rules import ExactMatch
from bluelm_lightning.types import Rollout, Score

_FORMULAS = ("group", "soft_overlong", "min_max")


class GroupOverlong(Reward):
    """0 down to -1, by the length of the rollout against the rollouts of the same prompt.

    ``group``: with m = mean length of the group's right rollouts, ``-clip((length - m) / (span * m), 0, 1)``: who needs
    more than the right ones do pays, who needs less gains nothing, so there is no reward for guessing. It applies only
    where at least ``gate`` of the group is right: a hard prompt may take its time.
    ``min_max``: ``-(length - shortest) / (longest - shortest)``, halved for right rollouts, gated likewise.
    ``soft_overlong``: DAPO's, 0 up to ``max_tokens - cache_tokens``, then linear to -1 at ``max_tokens``.

    ``docs/RL.md`` compares them: all shorten at about the same accuracy. ``group`` is the default: it alone pays
    nothing for being shorter than the right answers are; ``min_max`` shortens a little more.

    Args:
        formula: ``group``, ``min_max`` or ``soft_overlong``.
        gate: least share of right rollouts at which the group is judged.
        span: for ``group``; how far over the mean the penalty is full.
        max_tokens, cache_tokens: for ``soft_overlong``.
        count: ``thinking`` or ``all`` tokens.
        correct: decides what is right; default: exact match.

    Raises:
        ConfigError: an unknown choice, or a number out of range.
    """

    def __init__(
        self,
        formula: str = "group",
        gate: float = 0.5,
        span: float = 1.0,
        max_tokens: int = 256,
        cache_tokens: int = 64,
        count: str = "thinking",
        correct: Reward | None = None,
    ) -> None:
        if formula not in _FORMULAS or count not in ("thinking", "all"):
            raise ConfigError(
                f"formula={formula!r}, count={count!r}; give one of {_FORMULAS}, thinking or all", "formula"
            )
        if not 0 <= gate <= 1 or span <= 0 or not 0 < cache_tokens <= max_tokens:
            raise ConfigError(f"gate={gate}, span={span}, cache_tokens={cache_tokens}, max_tokens={max_tokens}", "gate")
        self.formula, self.gate, self.span, self.count = formula, gate, span, count
        self.max_tokens, self.cache_tokens, self.correct = max_tokens, cache_tokens, correct or ExactMatch()

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        lengths = [r.thinking_tokens if self.count == "thinking" else len(r.ids) for r in rollouts]
        if self.formula == "soft_overlong":
            penalties = overlong_penalty(torch.tensor(lengths), self.max_tokens, self.cache_tokens)
            return [Score(value) for value in penalties.tolist()]
        right = [(verdict.value or 0.0) >= 1.0 for verdict in self.correct.score(rollouts)]
        groups: dict[int, list[int]] = defaultdict(list)
        for place, rollout in enumerate(rollouts):
            groups[rollout.group].append(place)
        out = [0.0] * len(rollouts)
        for places in groups.values():
            judged = self._judge([lengths[i] for i in places], [right[i] for i in places])
            for place, value in zip(places, judged):
                out[place] = value
        return [Score(value) for value in out]

    def _judge(self, lengths: list[int], right: list[bool]) -> list[float]:
        """Penalties of one group."""
        good = [length for length, ok in zip(lengths, right) if ok]
        if not good or len(good) < self.gate * len(lengths):
            return [0.0] * len(lengths)
        if self.formula == "group":
            needed = sum(good) / len(good)
            return [-min(1.0, max(0.0, (n - needed) / max(self.span * needed, 1.0))) for n in lengths]
        shortest, spread = min(lengths), max(lengths) - min(lengths)
        return [-(n - shortest) / spread * (0.5 if ok else 1.0) if spread else 0.0 for n, ok in zip(lengths, right)]


class BudgetOverlong(Reward):
    """0 down to -1 as the thinking nears its prompt's budget, so that an answer plans to end before it is cut.

    With budget N and thinking of n tokens: ``-clip((n - (1 - margin) * N) / (margin * N), 0, 1)``. Prompts without a
    budget, or with one of 0, cost nothing.

    Args:
        margin: last share of the budget in which the penalty grows.

    Raises:
        ConfigError: a margin outside (0, 1].

    Source: DAPO's soft overlong punishment, with each prompt's own budget as the limit; our choice.
    """

    def __init__(self, margin: float = 0.25) -> None:
        if not 0 < margin <= 1:
            raise ConfigError(f"{margin} is not in (0, 1]", "margin")
        self.margin = margin

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(self._penalty(rollout.thinking_tokens, rollout.prompt.budget)) for rollout in rollouts]

    def _penalty(self, spent: int, budget: int | None) -> float:
        if not budget:
            return 0.0
        return -min(1.0, max(0.0, (spent - (1 - self.margin) * budget) / (self.margin * budget)))
