"""What a rollout is worth. A reward is any class with ``score(rollouts) -> list[Score]``, named by class path."""

from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.rl.rewards.form import Format, Repetition
from bluelm_lightning.rl.rewards.lengths import GroupOverlong
from bluelm_lightning.rl.rewards.router import RewardRouter
from bluelm_lightning.rl.rewards.rules import ExactMatch, MultipleChoice, NumericMatch

__all__ = [
    "ExactMatch",
    "Format",
    "GroupOverlong",
    "MultipleChoice",
    "NumericMatch",
    "Repetition",
    "Reward",
    "RewardRouter",
]
