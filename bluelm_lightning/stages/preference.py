"""Learning from preferences: the discriminative reward model, and direct preference optimisation."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from bluelm_lightning.components.adapters import only_adapters_train, switched_off
from bluelm_lightning.components.reward_model import last_states
from bluelm_lightning.components.value import ValueHead
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation.engine import evaluating
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.losses import linear_token_losses
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.stages.schedules import Schedule
from bluelm_lightning.stages.sharding import check_context
from bluelm_lightning.types import PackedBatch


class PreferenceStage(Stage):
    """Base: a subclass says by how much each preferred answer is ahead. P pairs, documents 2i and 2i + 1."""

    learns_from = "pairs"

    def configure_model(self) -> None:
        check_context(self, "an answer is judged as a whole")
        super().configure_model()

    def ahead(self, batch: PackedBatch) -> Tensor:
        """float32[P], the difference that the loss wants to be large."""
        raise TypeError(f"{type(self).__name__} must define ahead(batch)")

    def loss_of(self, ahead: Tensor) -> Tensor:
        """float32[P], from the differences."""
        return -F.logsigmoid(ahead)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        ahead = self.ahead(batch)
        losses = self.loss_of(ahead)
        self._log_pairs(losses, ahead, "train")
        return losses.sum() * self._scale(len(losses), losses.device)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        ahead = self.ahead(batch)
        self._log_pairs(self.loss_of(ahead), ahead, "val")

    def _log_pairs(self, losses: Tensor, ahead: Tensor, phase: str) -> None:
        if not len(losses) and (phase == "train" or self.trainer.world_size == 1):
            return
        # a process without pairs still takes part in the mean over processes, or the others would wait for it
        columns = {"loss": losses, "accuracy": (ahead > 0).float(), "ahead": ahead}
        values = {f"{phase}/{name}": value.detach().sum() / max(len(losses), 1) for name, value in columns.items()}
        self.log_dict(values, batch_size=len(losses), sync_dist=phase == "val")


class RewardStage(PreferenceStage):
    """Trains a discriminative reward model: Bradley-Terry, ``-log sigmoid(chosen - rejected - margin)``.

    Its checkpoint is what :class:`bluelm_lightning.rl.rewards.RewardModel` takes as ``weights``. No score passes
    through the decoder's output head: it is frozen, unless it is tied to the input embedding.
    Source: the report guards safety by a discriminative reward model; the loss is the field's (Ouyang et al. 2022).

    Args:
        vlm: reads the conversations.
        hidden_dim: width inside the head; default: the decoder's.
        margin: by how much the preferred answer must be ahead.
        optimizer, schedule, frozen, clip_norm: as :class:`Stage`.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        hidden_dim: int | None = None,
        margin: float = 0.0,
        optimizer: AdamW | None = None,
        schedule: Schedule | None = None,
        frozen: list[str] | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__(vlm, optimizer, schedule, None, clip_norm)
        if not margin >= 0:
            raise ConfigError(f"{margin} is negative", "model.margin")
        self.head, self.margin = ValueHead(vlm.decoder.width, hidden_dim), margin
        self._freeze(frozen or [])
        for parameter in vlm.decoder.head_parameters():  # processes would wait for gradients that never come
            parameter.requires_grad_(False)

    def ahead(self, batch: PackedBatch) -> Tensor:
        scores = self.head(last_states(self.vlm(batch), batch))
        return scores[0::2] - scores[1::2]

    def loss_of(self, ahead: Tensor) -> Tensor:
        return super().loss_of(ahead - self.margin)


class DPOStage(PreferenceStage):
    """Direct preference optimisation (Rafailov et al. 2023): the policy is its own reward model.

    ``-log sigmoid(beta * ((log p - log q)(chosen) - (log p - log q)(rejected)))`` with the reference q: a frozen copy
    of the policy as it was handed over, or the policy with its adapters off where nothing else trains.

    Args:
        vlm: the policy.
        beta: how dear the distance from the reference is.
        label_smoothing: share of preferences that may be the wrong way round (conservative DPO).
        optimizer, schedule, frozen, clip_norm: as :class:`Stage`.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        optimizer: AdamW | None = None,
        schedule: Schedule | None = None,
        frozen: list[str] | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__(vlm, optimizer, schedule, frozen, clip_norm)
        if not beta > 0 or not 0 <= label_smoothing < 0.5:
            given = f"beta={beta}, label_smoothing={label_smoothing}"
            raise ConfigError(f"{given}; give beta > 0, 0 <= label_smoothing < 0.5", "model.beta")
        self.beta, self.label_smoothing = beta, label_smoothing
        self.reference = None if only_adapters_train(self) else copy.deepcopy(vlm).requires_grad_(False)

    def on_fit_start(self) -> None:
        """The reference is the policy as it was handed over; a run that is continued has it in its checkpoint."""
        if self.reference is not None and self.trainer.ckpt_path is None:
            self.reference.load_state_dict(self.vlm.state_dict())

    def ahead(self, batch: PackedBatch) -> Tensor:
        gained = self._logprobs(self.vlm, batch) - self._reference_logprobs(batch)
        return self.beta * (gained[0::2] - gained[1::2])

    def loss_of(self, ahead: Tensor) -> Tensor:
        wrong = self.label_smoothing
        return (1 - wrong) * super().loss_of(ahead) + wrong * super().loss_of(-ahead)

    def _logprobs(self, vlm: VisionLanguageModel, batch: PackedBatch) -> Tensor:
        """float32[D], of each document's labelled tokens."""
        hidden, labels, docs = self.labelled(batch, vlm)
        losses = linear_token_losses(hidden, vlm.decoder.output_weight, labels)
        return torch.zeros(len(batch.sample_ids), device=losses.device).index_add(0, docs, -losses)

    @torch.no_grad()
    def _reference_logprobs(self, batch: PackedBatch) -> Tensor:
        if self.reference is None:
            with switched_off(self.vlm), evaluating(self.vlm):
                return self._logprobs(self.vlm, batch)
        with evaluating(self.reference):
            return self._logprobs(self.reference, batch)
