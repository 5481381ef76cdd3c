"""Data of reinforcement learning: prompts with their reward specs, modes and budgets."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.prompt_loader import PromptLoader
from bluelm_lightning.datamodules.base import MultimodalDataModule, SourceSpec
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
        **kwargs: as :class:`MultimodalDataModule`.
    """

    _train: PromptLoader | None  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: str,
        sources: list[SourceSpec],
        prompts_per_step: int = 32,
        budgets: BudgetRange | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, sources, **kwargs)
        if prompts_per_step < 1:
            raise ConfigError(f"{prompts_per_step} is below 1", "data.prompts_per_step")
        self.prompts_per_step, self.budgets = prompts_per_step, budgets or BudgetRange()

    def _training_loader(self, mixture: Mixture, shares: list[float | None]) -> PromptLoader:  # type: ignore[override]
        assert self.trainer is not None
        learner: Any = self.trainer.lightning_module
        return PromptLoader(
            self.opened,
            self.encoder,
            mixture,
            learner,
            self.prompts_per_step,
            shares,
            self.budgets,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )

    def set_budgets(self, low: int, high: int, free_share: float) -> None:
        """From the next prompt on, budgets are drawn from this range; see :class:`BudgetRange`."""
        self.budgets = BudgetRange(low, high, free_share)
        if self._train is not None:
            self._train.budgets = self.budgets

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "prompts_per_step": self.prompts_per_step}
