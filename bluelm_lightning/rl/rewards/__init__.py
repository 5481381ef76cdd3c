"""What a rollout is worth. A reward is any class with ``score(rollouts) -> list[Score]``, named by class path."""

from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.rl.rewards.form import Format, Repetition
from bluelm_lightning.rl.rewards.gym import ReasoningGym
from bluelm_lightning.rl.rewards.judge import GenerativeJudge, OpenAIEngine
from bluelm_lightning.rl.rewards.lengths import GroupOverlong
from bluelm_lightning.rl.rewards.math_verify import MathVerify
from bluelm_lightning.rl.rewards.router import RewardRouter
from bluelm_lightning.rl.rewards.rules import ExactMatch, MultipleChoice, NumericMatch
from bluelm_lightning.rl.rewards.service import RemoteReward
from bluelm_lightning.rl.rewards.trl import TRLReward

__all__ = [
    "ExactMatch",
    "Format",
    "GenerativeJudge",
    "GroupOverlong",
    "MathVerify",
    "MultipleChoice",
    "NumericMatch",
    "OpenAIEngine",
    "ReasoningGym",
    "RemoteReward",
    "Repetition",
    "Reward",
    "RewardRouter",
    "TRLReward",
]
