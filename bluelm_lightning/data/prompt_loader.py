"""PromptLoader: draws prompts, hands them to the learner, and yields the experience it makes of them.

The learner decodes and scores between two optimizer steps, in the main process, so every rollout is written by the
weights that are then updated. Its state is the mixture's, the number of draws, and the experience that is not yet used.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Experience, Learner, Prompt, Ref, Source

log = logging.getLogger(__name__)

_LENGTH = 1 << 30  # see __len__
_MOST_SKIPS = 100
_MOST_EMPTY = 20  # a cap on what dynamic sampling may cost


class PromptLoader:
    """An endless iterable of :class:`Experience`.

    Args:
        sources: samples with a question, a reference answer and, in ``meta["rewards"]``, their reward spec.
        encoder: turns them into prompts.
        mixture: their order.
        learner: makes experience of prompts.
        prompts_per_step: prompts of a collection; each gets a whole group of rollouts.
        thinking_shares: for each source, the share of prompts that ask for thinking; None = all.
        budgets: how the thinking budget of a prompt that asks for thinking is drawn.
        seed: of modes, budgets and sampling.
        rank, world_size: this process takes every ``world_size``-th prompt.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        mixture: Mixture,
        learner: Learner,
        prompts_per_step: int,
        thinking_shares: Sequence[float | None] = (),
        budgets: BudgetRange | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources, self.encoder, self.mixture, self.learner = list(sources), encoder, mixture, learner
        self.prompts_per_step, self.budgets, self.seed = prompts_per_step, budgets or BudgetRange(), seed
        self.thinking_shares = list(thinking_shares) or [None] * len(self.sources)
        self.rank, self.world_size = rank, world_size
        self.skipped = 0
        self.marked: dict[str, Any] = {"cursor": -1, "mixture": mixture.state_dict(), "draws": 0, "left": []}
        self._states: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return _LENGTH  # without a length Lightning would fetch one batch ahead: every rollout one update stale

    def __iter__(self) -> Iterator[Experience]:
        self.mixture.load_state_dict(self.marked["mixture"])
        cursor, draws = self.marked["cursor"], self.marked["draws"]
        left = [Experience(**item) for item in self.marked["left"]]
        empty = 0
        while True:
            if not left:
                prompts, draws = self._draw(draws)
                left = self.learner.learn(self.learner.write(prompts))
                empty = 0 if left else empty + 1  # every rollout of a group may have the same reward
                if empty >= _MOST_EMPTY:
                    raise DataError(
                        f"{empty} collections in a row taught nothing: all rewards of every prompt are equal"
                    )
                continue
            cursor += 1
            first, left = replace(left[0], cursor=cursor), left[1:]
            rest = [dict(vars(item)) for item in left]
            self._states[cursor] = {
                "cursor": cursor,
                "mixture": self.mixture.state_dict(),
                "draws": draws,
                "left": rest,
            }
            while len(self._states) > 4:
                self._states.popitem(last=False)
            yield first

    def mark(self, cursor: int) -> None:
        """The model was trained on batch ``cursor``: what is ``marked`` goes into a checkpoint."""
        self.marked = self._states[cursor]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.marked = state

    def _draw(self, draws: int) -> tuple[list[Prompt], int]:
        prompts: list[Prompt] = []
        skips = 0
        while len(prompts) < self.prompts_per_step:
            ref = next(self.mixture, None)
            if ref is None:  # every source has had its epochs
                self.mixture.renew()
                continue
            draws += 1
            if draws % self.world_size != self.rank:
                continue
            try:
                prompts.append(self.prompt(ref, draws))
                skips = 0
            except DataError as error:
                skips += 1
                self.skipped += 1
                log.warning("skipped prompt: %s", error)
                if skips >= _MOST_SKIPS:
                    raise DataError(f"{skips} prompts in a row cannot be used; the last: {error}") from error
        return prompts, draws

    def prompt(self, ref: Ref, draw: int) -> Prompt:
        """Prompt number ``draw``: mode, budget and seed depend on that number alone."""
        sample = self.sources[ref.source][ref.index]
        rng = Random(f"{self.seed}/{draw}")
        share = self.thinking_shares[ref.source]
        thinking = rng.random() < (1.0 if share is None else share)
        budget = self.budgets.draw(rng)
        encoded = self.encoder.prompt(sample, thinking)
        return Prompt(sample, encoded, thinking, budget if thinking else None, rng.getrandbits(48))
