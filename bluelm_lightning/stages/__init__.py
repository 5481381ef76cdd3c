"""Root modules: one class for each kind of training."""

from bluelm_lightning.rl.plan import RolloutPlan, ValuePlan
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.distill import DistillStage, cache_batch, write_cache
from bluelm_lightning.stages.distill_losses import DistillPlan
from bluelm_lightning.stages.muon import Muon
from bluelm_lightning.stages.optim import AdamW, ParameterGroup
from bluelm_lightning.stages.ppo import PPOStage
from bluelm_lightning.stages.preference import DPOStage, PreferenceStage, RewardStage
from bluelm_lightning.stages.pretrain import PretrainStage
from bluelm_lightning.stages.rl import RLStage
from bluelm_lightning.stages.schedules import Constant, Schedule, WarmupCosine, WarmupStableDecay
from bluelm_lightning.stages.sft import SFTStage
from bluelm_lightning.stages.sharded_strategy import ShardedStrategy

__all__ = [
    "AdamW",
    "Constant",
    "DPOStage",
    "DistillPlan",
    "DistillStage",
    "Muon",
    "PPOStage",
    "ParameterGroup",
    "PreferenceStage",
    "PretrainStage",
    "RLStage",
    "RewardStage",
    "RolloutPlan",
    "SFTStage",
    "Schedule",
    "ShardedStrategy",
    "Stage",
    "ValuePlan",
    "WarmupCosine",
    "WarmupStableDecay",
    "cache_batch",
    "write_cache",
]
