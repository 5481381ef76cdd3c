"""BudgetLogitsProcessor: the thinking budget inside ``generate`` of any transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bluelm_lightning.generation.budget import BudgetState, ThinkingBudget


class BudgetLogitsProcessor:
    """Holds each row of one ``generate`` call to its budget; pass ``LogitsProcessorList([...])``, a new one each call.

    The rows must stay where they are: greedy search and sampling, not beam search, and no assistant model. Put it last,
    so that nothing else moves the scores of a token that is forced.

    Args:
        budgets: one for all rows, or one a row; None = no rule for that row.
        max_new_tokens: as given to ``generate``.
        tokenizer: with the markers as single tokens.
    """

    def __init__(
        self, budgets: ThinkingBudget | Sequence[ThinkingBudget | None], max_new_tokens: int, tokenizer: Any
    ) -> None:
        self.budgets, self.max_new_tokens, self.tokenizer = budgets, max_new_tokens, tokenizer
        self._state: BudgetState | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids int64[R, T], scores float[R, V] -> scores with what is ruled out, or not forced, at minus infinity.

        Raises:
            ValueError: another number of rows than budgets.
        """
        if self._state is None:
            single = isinstance(self.budgets, ThinkingBudget)
            rows = [self.budgets] * len(scores) if single else list(self.budgets)  # type: ignore[arg-type, list-item]
            if len(rows) != len(scores):
                raise ValueError(f"{len(rows)} budgets for {len(scores)} rows; give one, or one a row")
            self._state = BudgetState(rows, self.max_new_tokens, self.tokenizer)  # type: ignore[arg-type]
        else:
            self._state.advance(input_ids[:, -1].cpu())
        forced, stops = self._state.forced(), self._state.blocked()
        scores = scores.clone()
        for column, token in enumerate((self._state.tokens.end, self._state.tokens.think)):
            scores[stops[:, column].to(scores.device), token] = float("-inf")
        put = (forced >= 0).nonzero().flatten()
        scores[put.to(scores.device)] = float("-inf")
        scores[put.to(scores.device), forced[put].to(scores.device)] = 0.0
        return scores
