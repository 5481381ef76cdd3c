"""Measuring a model: accuracy by task and mode, with intervals."""

from bluelm_lightning.evaluation.evaluate import Answered, TaskResult, answer_all, evaluate, summarise
from bluelm_lightning.evaluation.scoring import exact_match, wilson_interval
from bluelm_lightning.evaluation.statistics import mean_interval

__all__ = [
    "Answered",
    "TaskResult",
    "answer_all",
    "evaluate",
    "exact_match",
    "mean_interval",
    "summarise",
    "wilson_interval",
]
