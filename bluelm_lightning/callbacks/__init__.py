"""Callbacks: what a run shows, logs and guards against. They meet stage and data through Protocols only."""

from bluelm_lightning.callbacks.lineage import Lineage
from bluelm_lightning.callbacks.monitors import GradNorms, StopOnNaN, TrainingStopped
from bluelm_lightning.callbacks.online_evaluation import OnlineEvaluation
from bluelm_lightning.callbacks.preview import BatchPreview
from bluelm_lightning.callbacks.progress import TrainingProgress
from bluelm_lightning.callbacks.resampling import KeyDataResampling
from bluelm_lightning.callbacks.rl_alarms import Alarm, RLAlarms
from bluelm_lightning.callbacks.rollout_table import RolloutTable
from bluelm_lightning.callbacks.samples import SampleTable
from bluelm_lightning.callbacks.schedules import LengthPhase, LengthSchedule, RopeSwitch, SharePoint, ShareSchedule
from bluelm_lightning.callbacks.spikes import LossSpikes
from bluelm_lightning.callbacks.thinking_budget import AdaptiveBudgetCurriculum, ThinkingBudgetCurriculum
from bluelm_lightning.callbacks.throughput import Throughput

__all__ = [
    "AdaptiveBudgetCurriculum",
    "Alarm",
    "BatchPreview",
    "GradNorms",
    "KeyDataResampling",
    "LengthPhase",
    "LengthSchedule",
    "Lineage",
    "LossSpikes",
    "OnlineEvaluation",
    "RLAlarms",
    "RolloutTable",
    "RopeSwitch",
    "SampleTable",
    "SharePoint",
    "ShareSchedule",
    "StopOnNaN",
    "ThinkingBudgetCurriculum",
    "Throughput",
    "TrainingProgress",
    "TrainingStopped",
]
