"""Data of reinforcement learning: prompts with their reward specs, modes and budgets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.ledger import PassRateLedger
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.prompt_drawer import PromptDrawer, PromptPlan
from bluelm_lightning.data.prompt_loader import PromptLoader
from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.sources import SourceSpec
from bluelm_lightning.errors import ConfigError


class PromptDataModule(MultimodalDataModule):
    """Draws prompts; the stage answers and scores them, and trains on what comes back.

    ``thinking_share`` of a source is the share of its prompts that ask for thinking (default: all).

    Args:
        tokenizer: folder or Hugging Face id; the template's special tokens are added.
        sources: conversations whose last turn is to be answered, with a reference ``answer``; a sample may name its
            rewards in the key ``rewards``.
        prompts_per_step: prompts answered at a time, each by a whole group of rollouts.
        budgets: distribution of thinking budgets; default: free. A ``ThinkingBudgetCurriculum`` moves it.
        stated_share: share of the budgets that the prompt states in words.
        refills: further draws for a step, each for as many prompts as had nothing to teach (dynamic sampling).
        ledger: passes over prompts that the policy always or never solves; default: every prompt is asked.
        **kwargs: as :class:`MultimodalDataModule`.

    Raises:
        ConfigError: a number out of range, or a ledger where a source has a limit ``max_repeats``: limits count passes
            over a source, which are the same in every process, and a ledger asks fewer prompts than a pass has.
    """

    gives = "prompts"
    _train: PromptLoader | None  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: str,
        sources: list[SourceSpec],
        prompts_per_step: int = 32,
        budgets: BudgetRange | None = None,
        stated_share: float = 0.0,
        refills: int = 0,
        ledger: PassRateLedger | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, sources, **kwargs)
        limited = next((spec.label for spec in self.specs if spec.max_repeats is not None), None)
        if ledger is not None and limited is not None:
            raise ConfigError(
                f"passes over prompts, and max_repeats of {limited!r} would count those as asked; drop one of the two",
                "data.ledger",
            )
        self.asking = PromptPlan(prompts_per_step, refills, stated_share, self.seed)
        self.budgets, self.ledger = budgets or BudgetRange(), ledger

    def _training_loader(self, mixture: Mixture, shares: list[float | None]) -> PromptLoader:  # type: ignore[override]
        assert self.trainer is not None
        learner: Any = self.trainer.lightning_module
        place = (self.trainer.global_rank, self.trainer.world_size)
        course = None
        if self.resampler is not None:
            course = self.course.of(self.plan, [spec.label for spec in self.specs], 1, self._sample_weights)
            if self.ledger is not None:
                self.ledger.inherit(self.resampler.known_rates())
        drawer = PromptDrawer(self.opened, self.encoder, mixture, self.asking, shares, self.ledger, *place, course)
        return PromptLoader(drawer, learner, self.budgets)

    def set_budgets(self, low: int, high: int, free_share: float) -> None:
        """From the next prompt on, budgets are drawn from this range; see :class:`BudgetRange`."""
        self.budgets = BudgetRange(low, high, free_share)
        if self._train is not None:
            self._train.budgets = self.budgets

    def follow_rows(self, schedule: Any) -> None:
        raise ConfigError("prompts follow no schedule of rows or shares; take the callback away", "trainer.callbacks")

    follow_shares = follow_rows
    lag = 2  # collections: one may be under way in a thread

    def turn(self, step: int) -> int:
        return self._train.collection if self._train is not None else 0

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), **asdict(self.asking), "ledger": self.ledger and self.ledger.settings}
