"""How thinking budgets are drawn: a small distribution that a curriculum moves."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from bluelm_lightning.errors import ConfigError


@dataclass(frozen=True)
class BudgetRange:
    """A budget is free with probability ``free_share``, else uniform from ``low`` to ``high`` thinking tokens.

    Args:
        low: least budget, thinking tokens.
        high: greatest budget, thinking tokens.
        free_share: share of prompts without a limit.

    Raises:
        ConfigError: the range is empty, or the share is not in [0, 1].
    """

    low: int = 0
    high: int = 0
    free_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high or not 0 <= self.free_share <= 1:
            raise ConfigError(
                f"low={self.low}, high={self.high}, free_share={self.free_share}; give 0 <= low <= high and a share in "
                "[0, 1]",
                "budgets",
            )

    def draw(self, rng: Random) -> int | None:
        """One budget; the same number of random numbers is used whatever comes out."""
        free, tokens = rng.random() < self.free_share, rng.randint(self.low, self.high)
        return None if free else tokens
