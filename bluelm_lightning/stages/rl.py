"""Reinforcement learning from the stage's own rollouts: RLHF and RLVR in one phase, by GRPO and its kin."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation.budget import ThinkingBudget, ThinkingTokens
from bluelm_lightning.generation.decode import forbidden
from bluelm_lightning.generation.engine import evaluating, roll_out
from bluelm_lightning.generation.sampling import Sampling
from bluelm_lightning.rl.advantages import group_advantages, rloo_advantages
from bluelm_lightning.rl.experience import deal, pack_experience
from bluelm_lightning.rl.forensics import rollout_metrics
from bluelm_lightning.rl.policy_loss import GRPO, PolicyLoss
from bluelm_lightning.rl.rewards.router import RewardRouter
from bluelm_lightning.rl.scoring import token_logprobs
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.stages.schedules import Schedule
from bluelm_lightning.types import IGNORE, Experience, PackedBatch, Prompt, Rollout, Scored

_ADVANTAGES = ("std", "none", "rloo")


@dataclass(frozen=True)
class RolloutPlan:
    """How rollouts become updates.

    Args:
        group_size: answers to each prompt.
        advantage: ``std`` = (r - mean) / std of the group (GRPO), ``none`` = r - mean (Dr. GRPO), ``rloo`` =
            against the mean of the others.
        minibatches: optimizer steps in one pass over the rollouts.
        epochs: passes.
        drop_zero_variance: leave out groups whose rollouts all have the same reward: they teach nothing (DAPO).
        batch_size: prompts decoded together.

    Raises:
        ConfigError: a number below 1 (group_size: 2), or an unknown advantage.
    """

    group_size: int = 8
    advantage: str = "std"
    minibatches: int = 1
    epochs: int = 1
    drop_zero_variance: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        for key, least in (("group_size", 2), ("minibatches", 1), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"{getattr(self, key)} is below {least}", f"model.plan.{key}")
        if self.advantage not in _ADVANTAGES:
            raise ConfigError(f"{self.advantage!r} is not one of {', '.join(_ADVANTAGES)}", "model.plan.advantage")


class RLStage(Stage):
    """Policy optimisation over groups of rollouts.

    1. the data module draws prompts and calls :meth:`collect`, which decodes a group of answers to each prompt,
    2. scores them, computes advantages and packs them into micro-batches of experience;
    3. :meth:`training_step` is only the loss of one micro-batch.

    Source: BlueLM-2.5-3B, reinforcement learning: one phase, GRPO, reward = correctness + format + repetition + length.

    Args:
        vlm: the policy.
        rewards: what the rollouts are worth.
        algorithm: the loss. If its ``kl_coef`` is not 0, a frozen copy of the policy is kept as the reference.
        sampling: how rollouts are drawn; the policy that is optimised is this distribution.
        budget: reserve and closing text of thinking budgets; default: no rule, and a budget in a prompt is an error.
        plan: group size, minibatches, epochs.
        optimizer, schedule, frozen, clip_norm: as :class:`Stage`.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        rewards: RewardRouter,
        algorithm: PolicyLoss | None = None,
        sampling: Sampling | None = None,
        budget: ThinkingBudget | None = None,
        plan: RolloutPlan | None = None,
        optimizer: AdamW | None = None,
        schedule: Schedule | None = None,
        frozen: list[str] | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__(vlm, optimizer, schedule, frozen, clip_norm)
        self.rewards, self.algorithm, self.plan = rewards, algorithm or GRPO(), plan or RolloutPlan()
        self.sampling, self.budget = sampling or Sampling(temperature=1.0), budget
        if self.sampling.temperature <= 0:
            raise ConfigError("greedy rollouts do not differ; give a temperature above 0", "model.sampling.temperature")
        self.reference = copy.deepcopy(vlm).requires_grad_(False) if self.algorithm.kl_coef else None

    def on_fit_start(self) -> None:
        """The reference is the policy as it was handed over; a run that is continued has it in its checkpoint."""
        if self.reference is not None and self.trainer.ckpt_path is None:
            self.reference.load_state_dict(self.vlm.state_dict())

    @property
    def tokenizer(self) -> Any:
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ rollouts
    def collect(self, prompts: list[Prompt]) -> list[Experience]:
        """Micro-batches of experience from the present weights; none where no rollout can teach anything."""
        if self.budget is None and any(prompt.budget is not None for prompt in prompts):
            raise ConfigError("the data draws thinking budgets; give the stage its reserve", "model.budget")
        fixed = (self.tokenizer, self.sampling, self.plan.group_size, self.budget, self.plan.batch_size)
        with self.trainer.precision_plugin.forward_context():
            rollouts = roll_out(self.vlm, prompts, *fixed, step=self.global_step)
        scored = self.rewards.score(rollouts)
        advantages = self._advantages(scored)
        useful = self._useful(rollouts, scored, advantages)
        metrics = rollout_metrics(scored)
        return self._experience([rollouts[i] for i in useful], advantages[useful], metrics)

    def _advantages(self, scored: list[Scored]) -> Tensor:
        """float32[R]; 0 where the total is missing."""
        totals = torch.tensor([float("nan") if item.total is None else item.total for item in scored])
        groups = torch.tensor([item.rollout.group for item in scored])
        if self.plan.advantage == "rloo":
            return rloo_advantages(totals, groups)
        return group_advantages(totals, groups, scale=self.plan.advantage)

    def _useful(self, rollouts: list[Rollout], scored: list[Scored], advantages: Tensor) -> list[int]:
        keep = [item.total is not None for item in scored]
        if self.plan.drop_zero_variance:
            teaches = {r.group for r, a in zip(rollouts, advantages.tolist()) if a != 0}
            keep = [ok and r.group in teaches for ok, r in zip(keep, rollouts)]
        return [i for i, ok in enumerate(keep) if ok]

    def _experience(self, rollouts: list[Rollout], advantages: Tensor, metrics: dict[str, float]) -> list[Experience]:
        accumulate, plan = self.trainer.accumulate_grad_batches, self.plan
        parts = plan.minibatches * accumulate
        if not self._everyone(len(rollouts) >= parts):
            return []
        tokens = ThinkingTokens.of(self.tokenizer)
        fixed = (self.budget, self.sampling.max_new_tokens, tokens, self.tokenizer.pad_token_id)
        heaps = deal(rollouts, parts)
        packed = [pack_experience([rollouts[i] for i in heap], advantages[heap], *fixed) for heap in heaps]
        for start in range(0, parts, accumulate):
            self._share_denominators(packed[start : start + accumulate])
        if plan.minibatches * plan.epochs > 1:
            for item in packed:
                item.old = self._old_logprobs(item)
        packed[0].metrics = metrics
        later = [replace(item, metrics={}) for _ in range(plan.epochs - 1) for item in packed]
        return packed + later

    def _everyone(self, ready: bool) -> bool:
        """Whether every process is ready: they must take equally many steps, or some would wait forever."""
        if self.trainer.world_size == 1:
            return ready
        votes = torch.tensor(float(ready), device=self.device)
        return int(self.trainer.strategy.reduce(votes, reduce_op="sum")) == self.trainer.world_size

    def _share_denominators(self, step: list[Experience]) -> None:
        """Sequences and tokens of the whole optimizer step, so that micro-batches and processes sum to one batch."""
        counts = torch.tensor([sum(e.num_sequences for e in step), sum(e.num_learned for e in step)])
        if self.trainer.world_size > 1:
            counts = self.trainer.strategy.reduce(counts.to(self.device), reduce_op="sum")
        for item in step:
            item.num_sequences, item.num_learned = int(counts[0]), int(counts[1])

    @torch.no_grad()
    def _old_logprobs(self, item: Experience) -> Tensor:
        with self.trainer.precision_plugin.forward_context():
            return self._score(self.vlm, item.to(self.device))[0].cpu()

    def _score(self, vlm: VisionLanguageModel, batch: Experience) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies float32[M] of the written tokens under the weights of ``vlm``."""
        places = (batch.labels.flatten() != IGNORE).nonzero().flatten()
        hidden, ids = vlm(batch).flatten(0, 1)[places], batch.labels.flatten()[places]
        never = forbidden(self.vocab_size, self.tokenizer).to(hidden.device)
        tokens = ThinkingTokens.of(self.tokenizer)
        return token_logprobs(hidden, vlm.decoder.output_weight, ids, batch.stops, self.sampling, never, tokens)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Experience) -> Tensor | None:
        if self.reference is None:
            return None
        with evaluating(self.reference):
            return self._score(self.reference, batch)[0]

    # ------------------------------------------------------------------ loop
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        assert isinstance(batch, Experience)
        logprobs, entropy = self._score(self.vlm, batch)
        old = torch.where(batch.old.isnan(), logprobs.detach(), batch.old)  # exactly 1 is the ratio of a first update
        loss, stats = self.algorithm(
            logprobs,
            old,
            batch.advantages,
            batch.rollout,
            batch.learned,
            batch.num_sequences,
            batch.num_learned,
            behaviour=batch.behaviour,
            reference=self._reference_logprobs(batch),
        )
        values = {f"policy/{name}": float(value) for name, value in stats.items()} | batch.metrics
        values |= {"policy/loss": float(loss.detach()), "policy/entropy": float(entropy[batch.learned].mean())}
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        # Lightning divides by the micro-batches and the strategy by the processes; the denominators hold both already.
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        raise ConfigError("reinforcement learning has no validation loss; drop it and evaluate", "data.val_sources")
