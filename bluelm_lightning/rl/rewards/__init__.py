"""What a rollout is worth. A reward is any class with ``score(rollouts) -> list[Score]``, named by class path."""

from bluelm_lightning.rl.rewards.asking import AskingPlan, JudgeEngine, OpenAIEngine
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.rl.rewards.form import Format, Repetition
from bluelm_lightning.rl.rewards.gym import ReasoningGym
from bluelm_lightning.rl.rewards.judge import GenerativeJudge
from bluelm_lightning.rl.rewards.lengths import BudgetOverlong, GroupOverlong
from bluelm_lightning.rl.rewards.math_verify import MathVerify
from bluelm_lightning.rl.rewards.model import RewardModel
from bluelm_lightning.rl.rewards.router import RewardRouter
from bluelm_lightning.rl.rewards.rules import ExactMatch, MultipleChoice, NumericMatch
from bluelm_lightning.rl.rewards.service import RemoteReward
from bluelm_lightning.rl.rewards.steps import Steps, steps_hold
from bluelm_lightning.rl.rewards.trl import TRLReward
from bluelm_lightning.rl.rewards.verify import VerifyModel

__all__ = [
    "AskingPlan",
    "BudgetOverlong",
    "ExactMatch",
    "Format",
    "GenerativeJudge",
    "GroupOverlong",
    "JudgeEngine",
    "MathVerify",
    "MultipleChoice",
    "NumericMatch",
    "OpenAIEngine",
    "ReasoningGym",
    "RemoteReward",
    "Repetition",
    "Reward",
    "RewardModel",
    "RewardRouter",
    "Steps",
    "TRLReward",
    "VerifyModel",
    "steps_hold",
]
