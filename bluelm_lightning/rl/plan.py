"""How rollouts become updates: settings of the stages of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation.engine import RolloutEngine

_ADVANTAGES = ("std", "none", "rloo")


@dataclass(frozen=True)
class RolloutPlan:
    """How rollouts become updates.

    Args:
        group_size: answers to each prompt; at least 2 unless a value head says what was to be expected.
        advantage: ``std`` = (r - mean) / std of the group (GRPO), ``none`` = r - mean (Dr. GRPO), ``rloo`` =
            against the mean of the others.
        minibatches: optimizer steps in one pass over the rollouts.
        epochs: passes.
        drop_zero_variance: leave out groups whose rollouts all have the same reward: they teach nothing (DAPO).
        batch_size: prompts decoded together.
        ahead: write the next rollouts while these are learnt from, with weights that are one collection old. The
            staleness is logged; set the algorithm's ``correction``.
        engine: what writes the rollouts; default: this process.

    Raises:
        ConfigError: a number below 1, or an unknown advantage.
    """

    group_size: int = 8
    advantage: str = "std"
    minibatches: int = 1
    epochs: int = 1
    drop_zero_variance: bool = True
    batch_size: int = 16
    ahead: bool = False
    engine: RolloutEngine | None = None

    def __post_init__(self) -> None:
        for key in ("group_size", "minibatches", "epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{getattr(self, key)} is below 1", f"model.plan.{key}")
        if self.advantage not in _ADVANTAGES:
            raise ConfigError(f"{self.advantage!r} is not one of {', '.join(_ADVANTAGES)}", "model.plan.advantage")


@dataclass(frozen=True)
class ValuePlan:
    """How a value head is trained and used (PPO).

    Args:
        gamma: discount a token.
        lam: lambda of generalised advantage estimation; 1 = the whole return.
        coef: weight of the value loss.
        clip: how far a value may move from what it was when the rollouts were scored, before its loss stops counting;
            0 = no clipping.
        warmup_steps: optimizer steps in which the value head learns alone: advantages from a head that knows nothing
            would push the policy anywhere.
        whiten: shift and scale the advantages of an optimizer step to mean 0 and deviation 1.

    Raises:
        ConfigError: a number out of range.
    """

    gamma: float = 1.0
    lam: float = 0.95
    coef: float = 0.5
    clip: float = 0.2
    warmup_steps: int = 0
    whiten: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ConfigError(f"gamma={self.gamma}, lam={self.lam}; give 0 < gamma <= 1, 0 <= lam <= 1", "model.values")
        for key in ("coef", "clip", "warmup_steps"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{getattr(self, key)} is negative", f"model.values.{key}")
