"""Reinforcement learning from the stage's own rollouts: RLHF and RLVR in one phase, by GRPO and its kin."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.components.adapters import only_adapters_train, switched_off
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation.budget import ThinkingBudget, ThinkingTokens
from bluelm_lightning.generation.decode import forbidden
from bluelm_lightning.generation.engine import RolloutEngine, evaluating
from bluelm_lightning.generation.sampling import Sampling
from bluelm_lightning.rl.advantages import group_advantages, rloo_advantages
from bluelm_lightning.rl.experience import deal, pack_experience
from bluelm_lightning.rl.forensics import mean, pass_rates, rollout_metrics
from bluelm_lightning.rl.plan import RolloutPlan
from bluelm_lightning.rl.policy_loss import GRPO, PolicyLoss
from bluelm_lightning.rl.rewards.router import RewardRouter
from bluelm_lightning.rl.scoring import token_logprobs
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.stages.schedules import Schedule
from bluelm_lightning.stages.sharding import check_context, gather, refuse, release
from bluelm_lightning.types import IGNORE, Experience, PackedBatch, Prompt, Rollout, Scored


class RLStage(Stage):
    """Policy optimisation over groups of rollouts.

    1. the data module draws prompts and calls :meth:`write`, which decodes a group of answers to each and scores them;
    2. :meth:`learn` computes advantages and packs micro-batches of experience;
    3. :meth:`training_step` is only the loss of one micro-batch.

    Source: BlueLM-2.5-3B, reinforcement learning: one phase, GRPO, reward = correctness + format + repetition + length.

    Args:
        vlm: the policy.
        rewards: what the rollouts are worth.
        algorithm: the loss. If its ``kl_coef`` is not 0, the reference is a frozen copy of the policy, or the policy
            with its adapters off where nothing else trains.
        sampling: how rollouts are drawn; the policy that is optimised is this distribution.
        budget: reserve and closing text of thinking budgets; default: no rule, and a budget in a prompt is an error.
        plan: group size, minibatches, epochs.
        optimizer, schedule, frozen, clip_norm: as :class:`Stage`.
    """

    learns_from = "prompts"
    least_group = 2  # rollouts of a prompt
    sharded_methods = (*Stage.sharded_methods, "write", "learn")
    written_at: Tensor

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
        if self.plan.group_size < self.least_group:
            raise ConfigError("a group of one has nothing to be compared with; give 2 or more", "model.plan.group_size")
        self.scored: list[Scored] = []
        self.collected: list[list[Scored]] = []
        self.engine = self.plan.engine or RolloutEngine()
        self.by_adapters = bool(self.algorithm.kl_coef) and only_adapters_train(self)
        copied = self.algorithm.kl_coef and not self.by_adapters
        self.reference = copy.deepcopy(vlm).requires_grad_(False) if copied else None
        self.writer = copy.deepcopy(vlm).requires_grad_(False) if self.plan.ahead else None
        self.register_buffer("written_at", torch.tensor(0))

    def configure_model(self) -> None:
        if self.plan.ahead:
            refuse(self, "a thread cannot gather weights; set it to false, or train with DDP", "model.plan.ahead")
        if type(self.engine) is not RolloutEngine:
            refuse(self, "an engine reads whole weights; drop it, or train with DDP", "model.plan.engine")
        check_context(self, "a policy scores whole rollouts")
        if str(self.trainer.precision) in ("bf16-true", "16-true"):
            why = f"{self.trainer.precision} rounds the log-probabilities that ratios are made of"
            raise ConfigError(f"{why}; train in bf16-mixed", "trainer.precision")
        super().configure_model()

    def on_fit_start(self) -> None:
        """The reference is the policy as it was handed over; a run that is continued has it in its checkpoint."""
        if self.trainer.ckpt_path is None:
            self.snapshot()
            if self.reference is not None:
                self.reference.load_state_dict(self.vlm.state_dict())

    @property
    def tokenizer(self) -> Any:
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ rollouts
    def write(self, prompts: list[Prompt], first_group: int = 0) -> list[Scored]:
        """A group of scored answers to each prompt, from the present weights.

        Args:
            prompts: what to answer.
            first_group: number of the first prompt's group.
        """
        if self.budget is None and any(prompt.budget is not None for prompt in prompts):
            raise ConfigError("the data draws thinking budgets; give the stage its reserve", "model.budget")
        gather(self)  # until learn(); before the next line, since every process must
        if not prompts and self.trainer.world_size == 1:  # else the engine may have to do something with the others
            return []
        vlm, step = (self.writer, int(self.written_at)) if self.writer is not None else (self.vlm, self.global_step)
        fixed = (self.tokenizer, self.sampling, self.plan.group_size, self.budget, self.plan.batch_size)
        with self.trainer.precision_plugin.forward_context():
            rollouts = self.engine.write(vlm, prompts, *fixed, step)
        for rollout in rollouts:
            rollout.group += first_group
        return self.rewards.score(rollouts)

    def informative(self, scored: list[Scored]) -> int:
        """Groups that teach something."""
        if not scored:
            return 0
        return len({scored[i].rollout.group for i in self._useful(scored, self._credit(scored))})

    def learn(self, scored: list[Scored]) -> list[Experience]:
        """Micro-batches of experience; none where no rollout can teach anything."""
        release(self)
        self.scored = scored  # for callbacks, until the next
        self.collected.append(scored)
        credit = self._credit(scored)
        useful = self._useful(scored, credit)
        metrics = rollout_metrics(scored, self.rewards.verdicts, self.rewards.required)
        metrics["rollout/staleness"] = self.global_step - mean([item.rollout.step for item in scored])
        return self._experience([scored[i].rollout for i in useful], credit[useful], metrics)

    @property
    def ahead(self) -> bool:  # type: ignore[override]
        return self.plan.ahead

    def snapshot(self) -> None:
        """From now on rollouts are written by the present weights."""
        if self.writer is not None:
            self.writer.load_state_dict(self.vlm.state_dict())
            self.written_at.fill_(self.global_step)

    def pass_rates(self, scored: list[Scored]) -> dict[int, float]:
        return pass_rates(scored, self.rewards.required)

    def _credit(self, scored: list[Scored]) -> Tensor:
        """float32[R], the advantage of each rollout; 0 where the total is missing."""
        totals = torch.tensor([float("nan") if item.total is None else item.total for item in scored])
        groups = torch.tensor([item.rollout.group for item in scored])
        if self.plan.advantage == "rloo":
            return rloo_advantages(totals, groups)
        return group_advantages(totals, groups, scale=self.plan.advantage)

    def _useful(self, scored: list[Scored], credit: Tensor) -> list[int]:
        """Places of the rollouts that are learnt from."""
        keep = [item.total is not None for item in scored]
        if self.plan.drop_zero_variance:
            teaches = {item.rollout.group for item, a in zip(scored, credit.tolist()) if a != 0}
            keep = [ok and item.rollout.group in teaches for ok, item in zip(keep, scored)]
        return [i for i, ok in enumerate(keep) if ok]

    def _experience(self, rollouts: list[Rollout], credit: Tensor, metrics: dict[str, float]) -> list[Experience]:
        accumulate, plan = self.trainer.accumulate_grad_batches, self.plan
        parts = plan.minibatches * accumulate
        if not self._everyone(len(rollouts) >= parts):
            return []
        tokens = ThinkingTokens.of(self.tokenizer)
        fixed = (self.budget, self.sampling.max_new_tokens, tokens, self.tokenizer.pad_token_id)
        heaps = deal(rollouts, parts)
        packed = [pack_experience([rollouts[i] for i in heap], credit[heap], *fixed) for heap in heaps]
        for start in range(0, parts, accumulate):
            self._share_denominators(packed[start : start + accumulate])
        self._look_back(packed)
        packed[0].metrics = metrics
        later = [replace(item, metrics={}) for _ in range(plan.epochs - 1) for item in packed]
        return packed + later

    def _look_back(self, packed: list[Experience]) -> None:
        """What the weights before the first update say of the rollouts, where later updates must know it."""
        if self.plan.minibatches * self.plan.epochs > 1 or self.writer is not None:
            for item in packed:
                item.old = self._before(item)[0].cpu()

    @torch.no_grad()
    def _before(self, item: Experience) -> tuple[Tensor, Tensor]:
        """Log-probabilities and states of an update that is yet to come."""
        # no dropout: it would draw from the random stream inside the loader, before a resume has set it
        with self.trainer.precision_plugin.forward_context(), evaluating(self.vlm):
            batch = item.to(self.device)
            states = self._states(self.vlm, batch)
            return self._score(self.vlm, states, batch)[0], states

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

    def _states(self, vlm: VisionLanguageModel, batch: Experience) -> Tensor:
        """float[M, D], the states from which the written tokens were drawn."""
        places = (batch.labels.flatten() != IGNORE).nonzero().flatten()
        return vlm(batch).flatten(0, 1)[places]

    def _score(self, vlm: VisionLanguageModel, states: Tensor, batch: Experience) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies float32[M] of the written tokens under the weights of ``vlm``."""
        ids = batch.labels.flatten()
        ids = ids[ids != IGNORE]
        never = forbidden(self.vocab_size, self.tokenizer).to(states.device)
        tokens = ThinkingTokens.of(self.tokenizer)
        return token_logprobs(states, vlm.decoder.output_weight, ids, batch.stops, self.sampling, never, tokens)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Experience) -> Tensor | None:
        if self.by_adapters:
            with switched_off(self.vlm), evaluating(self.vlm):
                return self._score(self.vlm, self._states(self.vlm, batch), batch)[0]
        if self.reference is None:
            return None
        with evaluating(self.reference):
            return self._score(self.reference, self._states(self.reference, batch), batch)[0]

    # ------------------------------------------------------------------ loop
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        if not isinstance(batch, Experience):
            raise ConfigError(
                f"{type(self).__name__} learns from prompts that it answers; give it PromptDataModule", "data"
            )
        states = self._states(self.vlm, batch)
        logprobs, entropy = self._score(self.vlm, states, batch)
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
        loss, more = self._more_loss(loss, states, batch)
        self.log_dict(values | more, on_step=True, on_epoch=False, batch_size=1)
        # Lightning divides by the micro-batches and the strategy by the processes; the denominators hold both already.
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def on_train_batch_end(self, *args: Any) -> None:
        self.collected = []  # callbacks have seen them

    def _more_loss(self, loss: Tensor, states: Tensor, batch: Experience) -> tuple[Tensor, dict[str, float]]:
        """The loss with whatever a subclass adds to it, and what to log."""
        return loss, {}

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        raise ConfigError("reinforcement learning has no validation loss; drop it and evaluate", "data.val_sources")
