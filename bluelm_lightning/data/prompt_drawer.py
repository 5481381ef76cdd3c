"""PromptDrawer: which prompt is asked next, in which mode, under which budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.ledger import PassRateLedger
from bluelm_lightning.data.loader import Course
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Prompt, Ref, Source

log = logging.getLogger(__name__)

_MOST_SKIPS = 100
_MOST_REFUSED = 100  # then the next is taken: a policy that solves everything must not loop


@dataclass(frozen=True)
class PromptPlan:
    """How prompts are asked.

    Args:
        prompts_per_step: prompts of a collection; each gets a whole group of rollouts.
        refills: further draws for a collection, each for as many prompts as had nothing to teach (dynamic sampling of
            DAPO); a cap on what it may cost.
        stated_share: share of the budgets that the prompt states in words.
        seed: of modes, budgets and sampling.

    Raises:
        ConfigError: a number out of range.
    """

    prompts_per_step: int = 32
    refills: int = 0
    stated_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("prompts_per_step", 1), ("refills", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{getattr(self, key)} is below {least}", f"data.{key}")
        if not 0 <= self.stated_share <= 1:
            raise ConfigError(f"{self.stated_share} is not between 0 and 1", "data.stated_share")


@dataclass
class Asked:
    """A prompt and where it came from."""

    prompt: Prompt
    ref: Ref
    draw: int


@dataclass
class PromptDrawer:
    """Draws prompts; mode, budget and seed of a prompt depend on the number of its draw alone.

    Args:
        sources: samples with a question, a reference answer and, in ``meta["rewards"]``, their reward spec.
        encoder: turns them into prompts.
        mixture: their order.
        plan: see :class:`PromptPlan`.
        thinking_shares: for each source, the share of prompts that ask for thinking; None = all.
        ledger: passes over prompts that teach nothing; None: every prompt is asked.
        rank, world_size: this process draws every ``world_size``-th number.
        course: which shares the sources have, by number of the collection; default: those of the mixture.
    """

    sources: Sequence[Source]
    encoder: Encoder
    mixture: Mixture
    plan: PromptPlan
    thinking_shares: Sequence[float | None] = ()
    ledger: PassRateLedger | None = None
    rank: int = 0
    world_size: int = 1
    course: Course | None = None
    collections: int = field(default=0, init=False)
    draws: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.mixture.share_out(self.rank, self.world_size)

    def begin(self) -> None:
        """A collection begins: its shares hold."""
        weights = self.course.weights_at(self.collections) if self.course else None
        if weights is not None:
            self.mixture.set_weights(weights)
        self.collections += 1

    def draw(self, count: int, budgets: BudgetRange) -> list[Asked]:
        """The next ``count`` prompts. Raises DataError: a hundred in a row cannot be used."""
        asked: list[Asked] = []
        skips = refused = 0
        while len(asked) < count:
            ref = self._next()
            if ref is None:
                continue
            rng = Random(f"{self.plan.seed}/{self.draws}")
            if self.ledger and refused < _MOST_REFUSED and not self.ledger.accepts(ref, self.draws, self._chance()):
                refused += 1
                self.refused += 1
                continue
            try:
                asked.append(Asked(self._prompt(ref, rng, budgets), ref, self.draws))
                skips = refused = 0
            except DataError as error:
                skips += 1
                self.skipped += 1
                log.warning("skipped prompt: %s", error)
                if skips >= _MOST_SKIPS:
                    raise DataError(f"{skips} prompts in a row cannot be used; the last: {error}") from error
        return asked

    def _next(self) -> Ref | None:
        """The next sample; None at the end of a round."""
        ref = next(self.mixture, None)
        if ref is None:  # every source has had its epochs
            if self.mixture.spent:
                raise DataError("every prompt has been asked max_repeats times; raise data.sources.max_repeats")
            self.mixture.renew()
            return None
        self.draws += self.world_size if self.draws else self.rank + 1  # no process has the number of another
        return ref

    def _chance(self) -> Random:
        return Random(f"ledger {self.plan.seed}/{self.draws}")

    def _prompt(self, ref: Ref, rng: Random, budgets: BudgetRange) -> Prompt:
        sample = self.sources[ref.source][ref.index]
        share = self.thinking_shares[ref.source] if self.thinking_shares else None
        thinking = rng.random() < (1.0 if share is None else share)
        budget = budgets.draw(rng)
        budget = budget if thinking else None
        seed, states = rng.getrandbits(48), rng.random() < self.plan.stated_share
        encoded = self.encoder.prompt(sample, thinking, budget if states else None)
        return Prompt(sample, encoded, thinking, budget, seed, ref)

    def record(self, asked: Sequence[Asked], rates: dict[int, float]) -> None:
        """Pass rates by number of the group, which is the place in ``asked``."""
        if self.ledger:
            for group, rate in rates.items():
                self.ledger.record(asked[group].ref, asked[group].draw, rate)

    def state_dict(self) -> dict[str, Any]:
        ledger = self.ledger.state_dict() if self.ledger else None
        counts = {"draws": self.draws, "collections": self.collections}
        return {"mixture": self.mixture.state_dict(), **counts, "ledger": ledger}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mixture.load_state_dict(state["mixture"])
        self.draws, self.collections = state["draws"], state.get("collections", 0)  # none: from before
        if self.ledger and state["ledger"]:
            self.ledger.load_state_dict(state["ledger"])
