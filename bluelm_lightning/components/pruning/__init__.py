"""Structured pruning of a decoder: fewer layers, narrower states, fewer heads, smaller MLPs, by measured importance.

Source: the report's 3B model is pruned from a 7B teacher and distilled; what is pruned and by which criterion is
unknown. Ours follow the Minitron papers (Muralidharan et al. 2024; Sreenivas et al. 2024): importance from activations
on a small calibration set, whole groups of grouped-query attention, one slice for all layers.
"""

from bluelm_lightning.components.pruning.importance import Importance, activation_importance, magnitude_importance
from bluelm_lightning.components.pruning.plan import PruningPlan, count_parameters, plan_for, plan_of
from bluelm_lightning.components.pruning.prune import PruningReport, prune

__all__ = [
    "Importance",
    "PruningPlan",
    "PruningReport",
    "activation_importance",
    "count_parameters",
    "magnitude_importance",
    "plan_for",
    "plan_of",
    "prune",
]
