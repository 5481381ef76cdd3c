"""Proximal policy optimisation: as :class:`RLStage`, with a value head in the place of the group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.components.value import ValueHead
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation.budget import ThinkingBudget
from bluelm_lightning.generation.sampling import Sampling
from bluelm_lightning.rl.advantages import gae
from bluelm_lightning.rl.plan import RolloutPlan, ValuePlan
from bluelm_lightning.rl.policy_loss import PolicyLoss
from bluelm_lightning.rl.rewards.router import RewardRouter
from bluelm_lightning.rl.value_loss import value_loss
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.stages.rl import RLStage
from bluelm_lightning.stages.schedules import Schedule
from bluelm_lightning.types import Experience, Scored


class PPOStage(RLStage):
    """Policy optimisation with a learnt baseline (Schulman et al. 2017).

    The reward is earned at a rollout's last token; forced tokens are states like others, and carry no policy loss. The
    value head reads the decoder's states without changing them: its loss trains the head alone. One optimizer holds
    both; give the head its own learning rate by a group with ``match: value.*``.

    Args:
        vlm: the policy.
        value: the head.
        rewards: what the rollouts are worth.
        values: discount, clipping and warm-up.
        algorithm, sampling, budget, plan: as :class:`RLStage`; ``plan.advantage`` is not used.
        optimizer, schedule, frozen, clip_norm: as :class:`Stage`.

    Raises:
        ConfigError: the head does not fit the decoder.
    """

    least_group = 1

    def __init__(
        self,
        vlm: VisionLanguageModel,
        value: ValueHead,
        rewards: RewardRouter,
        values: ValuePlan | None = None,
        algorithm: PolicyLoss | None = None,
        sampling: Sampling | None = None,
        budget: ThinkingBudget | None = None,
        plan: RolloutPlan | None = None,
        optimizer: AdamW | None = None,
        schedule: Schedule | None = None,
        frozen: list[str] | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        if value.decoder_dim != vlm.decoder.width:
            raise ConfigError(
                f"the value head has decoder_dim={value.decoder_dim} but the decoder is {vlm.decoder.width} wide; "
                f"set decoder_dim: {vlm.decoder.width}",
                "model.value.decoder_dim",
            )
        plan = plan or RolloutPlan(group_size=1)
        super().__init__(vlm, rewards, algorithm, sampling, budget, plan, optimizer, schedule, None, clip_norm)
        self.value, self.values = value, values or ValuePlan()
        self._freeze(frozen or [])

    def _credit(self, scored: list[Scored]) -> Tensor:
        """float32[R], what each rollout earned; 0 where the total is missing."""
        return torch.tensor([0.0 if item.total is None else item.total for item in scored])

    def _useful(self, scored: list[Scored], credit: Tensor) -> list[int]:
        return [i for i, item in enumerate(scored) if item.total is not None]

    def _look_back(self, packed: list[Experience]) -> None:
        for item in packed:
            old, states = self._before(item)
            item.old = old.cpu()
            with torch.no_grad():
                item.values = self.value(states).cpu()
            item.advantages, item.returns = self._advantages(item)
        step = self.trainer.accumulate_grad_batches
        if self.values.whiten:
            for start in range(0, len(packed), step):
                self._whiten(packed[start : start + step])

    def _advantages(self, item: Experience) -> tuple[Tensor, Tensor]:
        """Advantages and returns float32[M]; until now ``item.advantages`` holds what each token's rollout earned."""
        assert item.values is not None
        lengths = item.rollout.bincount().tolist()
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        values = torch.zeros(mask.shape).masked_scatter_(mask, item.values)
        rewards = torch.zeros(mask.shape)
        ends = torch.tensor(lengths).cumsum(0) - 1
        rewards[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = item.advantages[ends]
        advantages, returns = gae(rewards, values, mask, self.values.gamma, self.values.lam)
        return advantages[mask], returns[mask]

    def _whiten(self, step: list[Experience]) -> None:
        """Mean 0 and deviation 1 over the learned tokens of an optimizer step, on all processes."""
        chosen = torch.cat([item.advantages[item.learned] for item in step]).double()
        sums = torch.stack([chosen.new_tensor(len(chosen)), chosen.sum(), chosen.square().sum()])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        mean = sums[1] / sums[0].clamp_min(1)
        deviation = (sums[2] / sums[0].clamp_min(1) - mean.square()).clamp_min(0).sqrt()
        for item in step:
            item.advantages = ((item.advantages - mean) / (deviation + 1e-8)).float()

    def _more_loss(self, loss: Tensor, states: Tensor, batch: Experience) -> tuple[Tensor, dict[str, float]]:
        assert batch.values is not None
        assert batch.returns is not None
        values = self.value(states.detach())
        fixed = (batch.values, batch.returns, batch.learned, batch.num_learned, self.values.clip)
        wrong, stats = value_loss(values, *fixed)
        logged = {f"value/{name}": float(number) for name, number in stats.items()} | {
            "value/loss": float(wrong.detach())
        }
        return loss + self.values.coef * wrong, logged

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if self.global_step < self.values.warmup_steps:
            for parameter in self.vlm.parameters():
                parameter.grad = None  # zero would still let weight decay and momentum move the policy
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
