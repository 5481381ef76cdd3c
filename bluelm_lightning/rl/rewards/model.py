"""RewardModel: rollouts scored by a discriminative reward model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bluelm_lightning.components.reward_model import DiscriminativeRewardModel
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import IGNORE, Encoded, Rollout, Score


class RewardModel(Reward):
    """The score of prompt and answer under a :class:`DiscriminativeRewardModel`, in (0, 1) unless ``squash`` is off.

    It reads the policy's own token ids, so it must have been trained with the policy's tokenizer. Where there is no
    answer (the thinking never closed, or the limit cut it) it reads nothing: the score is the lowest, 0, as the
    judge's is; without ``squash`` there is no lowest, and the score is missing.

    Args:
        model: the reward model.
        weights: its weights, as :meth:`Component.save` or the reward stage writes them.
        squash: logistic function of the score: between 0 and 1 beside other rewards.
        thinking: let it read the thinking too; else only the answer after it.
        batch_tokens: tokens read at a time.
        device: where it computes.

    Raises:
        ConfigError: the weights do not fit, or ``batch_tokens`` is below 1.
    """

    def __init__(
        self,
        model: DiscriminativeRewardModel,
        weights: str | None = None,
        squash: bool = True,
        thinking: bool = False,
        batch_tokens: int = 16_384,
        device: str = "cpu",
    ) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"{batch_tokens} is below 1", "batch_tokens")
        if weights is not None:
            model.load(weights)
        self.model = model.eval().requires_grad_(False).to(device)
        self.squash, self.thinking, self.batch_tokens, self.device = squash, thinking, batch_tokens, device

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        documents = [self._document(rollout) for rollout in rollouts if rollout.generation.answer]
        values: list[float] = []
        for heap in self._heaps(documents):
            scores = self.model(pack([heap], sum(map(len, heap)), 0).to(self.device))
            values += (scores.sigmoid() if self.squash else scores).tolist()
        read = iter(values)
        none = Score(0.0) if self.squash else Score(None, "there is no answer to score; squash makes it a 0")
        return [Score(next(read)) if rollout.generation.answer else none for rollout in rollouts]

    def _document(self, rollout: Rollout) -> Encoded:
        prompt, written = rollout.prompt.encoded, rollout.ids
        if not self.thinking:
            written = written[rollout.answer_start :]
        ids = torch.cat([prompt.ids, written])
        return replace(prompt, ids=ids, labels=torch.full_like(ids, IGNORE))

    def _heaps(self, documents: list[Encoded]) -> list[list[Encoded]]:
        """Neighbours packed together, up to ``batch_tokens``."""
        heaps: list[list[Encoded]] = []
        tokens = 0
        for document in documents:
            if not heaps or tokens + len(document) > self.batch_tokens:
                heaps.append([])
                tokens = 0
            heaps[-1].append(document)
            tokens += len(document)
        return heaps
