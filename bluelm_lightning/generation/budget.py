"""ThinkingBudget: at most N thinking tokens, then the thinking is closed and the answer has room. One rule everywhere.

Generation, rollouts, rewards and evaluation use this class. Its rule, token by token:

- Thinking tokens are those between ``<think>`` and ``</think>``, closing text included; never more than N.
- When the closing text just fits, it and ``</think>`` are forced; a budget shorter than the text drops the text.
- It is closed earlier where ``max_new_tokens`` would not leave ``answer_reserve`` tokens for the answer and ``</s>``.
- ``</s>`` cannot be drawn inside the thinking, so every row has an answer.
- N = 0: ``<think>`` cannot be drawn. N = None: thinking is free, and the reserve still holds.

Source: explicit control of thinking tokens is the report's; to stop at the threshold, insert a fixed sentence and
``</think>`` is Qwen3's way; the reserve and the exact counting are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.data import chat
from bluelm_lightning.errors import ConfigError

_FREE = 1 << 40


@dataclass(frozen=True)
class ThinkingBudget:
    """How long an answer may think.

    Args:
        max_thinking_tokens: N; None = free, 0 = no thinking.
        answer_reserve: tokens that are always left for the answer and ``</s>``.
        closing_text: what is forced before ``</think>`` when the budget is spent.

    Raises:
        ConfigError: a negative number.
    """

    max_thinking_tokens: int | None = None
    answer_reserve: int = 16
    closing_text: str = ""

    def __post_init__(self) -> None:
        if (self.max_thinking_tokens or 0) < 0 or self.answer_reserve < 1:
            given = f"max_thinking_tokens={self.max_thinking_tokens}, answer_reserve={self.answer_reserve}"
            raise ConfigError(f"{given}: the first must be 0 or more, the second 1 or more", "budget")

    def of(self, tokens: int | None) -> ThinkingBudget:
        """The same budget with another number of tokens."""
        return replace(self, max_thinking_tokens=tokens)


@dataclass(frozen=True)
class ThinkingTokens:
    """Ids of the three tokens that the rule looks at."""

    think: int
    end_think: int
    end: int

    @classmethod
    def of(cls, tokenizer: Any) -> ThinkingTokens:
        ids = [tokenizer.convert_tokens_to_ids(token) for token in (chat.THINK, chat.END_THINK, chat.END)]
        return cls(*ids)


def inside_thinking(ids: Tensor, tokens: ThinkingTokens) -> Tensor:
    """bool[T]: whether the thinking was open when each of ``ids`` (int64[T]) was written."""
    places = torch.arange(len(ids))
    opened = torch.where(ids == tokens.think, places, -1).cummax(0).values if len(ids) else places
    closed = torch.where(ids == tokens.end_think, places, -1).cummax(0).values if len(ids) else places
    after = opened > closed  # open after this token
    return torch.cat([after.new_zeros(1), after[:-1]]) if len(ids) else after


def count_thinking(ids: Tensor, tokens: ThinkingTokens) -> int:
    """Tokens between ``<think>`` and ``</think>``; a second ``<think>`` in between counts as one."""
    return int((inside_thinking(ids, tokens) & (ids != tokens.end_think)).sum())


def blocked_in(ids: Tensor, budget: ThinkingBudget | None, max_new_tokens: int, tokens: ThinkingTokens) -> Tensor:
    """bool[T, 2]: what :meth:`BudgetState.blocked` said while ``ids`` (int64[T]) were written, for the trainer."""
    if budget is None:
        return torch.zeros(len(ids), 2, dtype=torch.bool)
    nearly = torch.arange(len(ids)) + 2 > max_new_tokens - budget.answer_reserve
    return torch.stack([inside_thinking(ids, tokens), nearly | (budget.max_thinking_tokens == 0)], dim=1)


class BudgetState:
    """The rule for the rows of a batch while they are written. R rows, each with its own budget.

    Args:
        budgets: one a row; None = no rule at all for that row.
        max_new_tokens: limit of new tokens.
        tokenizer: for the closing text and the ids of the markers.

    Raises:
        ConfigError: ``max_new_tokens`` has no room for the reserve and the two markers.
    """

    def __init__(self, budgets: list[ThinkingBudget | None], max_new_tokens: int, tokenizer: Any) -> None:
        self.tokens, self.max_new_tokens, self.step = ThinkingTokens.of(tokenizer), max_new_tokens, 0
        for budget in budgets:
            if budget is not None and budget.answer_reserve + 2 > max_new_tokens:
                raise ConfigError(
                    f"{max_new_tokens} new tokens leave no room for an answer reserve of {budget.answer_reserve} and "
                    f"two markers; give at least {budget.answer_reserve + 2}",
                    "max_new_tokens",
                )
        texts = {b.closing_text: _closing(b.closing_text, tokenizer, self.tokens) for b in budgets if b is not None}
        plans = [texts[b.closing_text] if b is not None else [self.tokens.end_think] for b in budgets]
        longest = max(map(len, plans), default=1)
        self.plan = torch.tensor([[-1] * (longest - len(p)) + p for p in plans])  # int64[R, L], right-aligned
        limits = [None if b is None else b.max_thinking_tokens for b in budgets]
        self.limit = torch.tensor([_FREE if n is None else n for n in limits])
        text = torch.tensor([len(p) - 1 for p in plans])
        self.text = torch.where(text > self.limit, 0, text)  # a budget shorter than the closing text drops it
        self.bound = torch.tensor([b is not None for b in budgets])
        reserves = [max_new_tokens - b.answer_reserve if b is not None else _FREE for b in budgets]
        self.last_close = torch.tensor(reserves)  # tokens that may be written before the answer
        self.inside = torch.zeros(len(budgets), dtype=torch.bool)
        self.used = torch.zeros(len(budgets), dtype=torch.long)
        self.queue = torch.full((len(budgets),), -1)  # column of `plan` that is forced next; -1: none

    def forced(self) -> Tensor:
        """int64[R]: the token that each row must write now, or -1."""
        spent = self.used + self.text >= self.limit
        late = self.step + self.text + 1 >= self.last_close
        start = self.inside & self.bound & (self.queue < 0) & (spent | late)
        whole = self.plan.shape[1] - 1 - self.text
        room = (self.used + self.text <= self.limit) & (self.step + self.text + 1 <= self.last_close)
        self.queue = torch.where(start, torch.where(room, whole, self.plan.shape[1] - 1), self.queue)
        chosen = self.plan.gather(1, self.queue.clamp_min(0)[:, None])[:, 0]
        return torch.where(self.queue >= 0, chosen, -1)

    def blocked(self) -> Tensor:
        """bool[R, 2]: whether each row must not draw ``</s>``, and must not draw ``<think>``."""
        nearly = self.step + 2 > self.last_close  # no room to open and close
        return torch.stack([self.inside & self.bound, self.bound & ((self.limit == 0) | nearly)], dim=1)

    def advance(self, written: Tensor) -> None:
        """Take note of the tokens int64[R] just written."""
        opens, closes = written == self.tokens.think, written == self.tokens.end_think
        self.used += (self.inside & ~closes).long()
        self.inside = (self.inside | opens) & ~closes
        following = torch.where(self.queue + 1 < self.plan.shape[1], self.queue + 1, -1)
        self.queue = torch.where(self.queue >= 0, following, self.queue)
        self.step += 1

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        for name in ("plan", "text", "limit", "bound", "last_close", "inside", "used", "queue"):
            setattr(self, name, getattr(self, name)[rows])


def _closing(text: str, tokenizer: Any, tokens: ThinkingTokens) -> list[int]:
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
    return [*plain, tokens.end_think]
