"""PassRateLedger: how often the policy solved each prompt, and which prompts are worth asking again."""

from __future__ import annotations

from random import Random
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Ref


class PassRateLedger:
    """Prompts that are always or never solved teach a group-relative method nothing: they are drawn less often.

    A prompt that was never asked is accepted. One whose pass rate lies in ``[low, high]`` is accepted; outside it is
    accepted with probability ``outside``, and again for certain once ``refresh`` prompts have been drawn since it was
    asked: the policy may have changed. No rollout is spent on what is not accepted.

    Args:
        low, high: the band of pass rates.
        outside: probability of a prompt outside the band.
        refresh: draws after which a pass rate is stale.
        memory: share of the old pass rate that is kept when a prompt is asked again.

    Raises:
        ConfigError: a number out of range.

    Source: the report resamples key data and does not define it; the band around one half, where the variance of a
    group's rewards is greatest, is our choice.
    """

    def __init__(
        self, low: float = 0.1, high: float = 0.9, outside: float = 0.1, refresh: int = 5000, memory: float = 0.5
    ) -> None:
        if not 0 <= low <= high <= 1 or not 0 < outside <= 1 or refresh < 1 or not 0 <= memory < 1:
            given = f"low={low}, high={high}, outside={outside}, refresh={refresh}, memory={memory}"
            raise ConfigError(f"{given}; give 0 <= low <= high <= 1, 0 < outside <= 1", "data.ledger")
        self.low, self.high, self.outside, self.refresh, self.memory = low, high, outside, refresh, memory
        self.rates: dict[tuple[int, int], tuple[float, int]] = {}  # (source, index) -> pass rate, draw when asked

    def accepts(self, ref: Ref, draw: int, rng: Random) -> bool:
        """Whether to ask the prompt of ``ref`` at draw number ``draw``; one random number, whatever comes out."""
        chance = rng.random()
        known = self.rates.get((ref.source, ref.index))
        if known is None:
            return True
        rate, asked = known
        return self.low <= rate <= self.high or draw - asked >= self.refresh or chance < self.outside

    def record(self, ref: Ref, draw: int, rate: float) -> None:
        """The group of ``ref`` had this share of right answers."""
        key = (ref.source, ref.index)
        before = self.rates.get(key)
        self.rates[key] = (rate if before is None else self.memory * before[0] + (1 - self.memory) * rate, draw)

    def inherit(self, rates: dict[tuple[int, int], float]) -> None:
        """Pass rates of an earlier stage, by (source, index), for prompts that this one has not asked."""
        for key, rate in rates.items():
            self.rates.setdefault(key, (rate, 0))

    @property
    def settings(self) -> list[float]:
        """What the order of prompts depends on."""
        return [self.low, self.high, self.outside, self.refresh, self.memory]

    def state_dict(self) -> dict[str, Any]:
        return {"rates": [[*key, *value] for key, value in self.rates.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates = {(source, index): (rate, asked) for source, index, rate, asked in state["rates"]}
