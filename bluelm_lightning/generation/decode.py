"""The decoding loop: one packed prefill, copies that share it, one token a row and step, finished rows leave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data import chat
from bluelm_lightning.data.packing import pack
from bluelm_lightning.generation.budget import BudgetState, ThinkingBudget
from bluelm_lightning.generation.cache import KVCache
from bluelm_lightning.generation.sampling import Sampling, draw, log_distribution, uniforms
from bluelm_lightning.types import Encoded


@dataclass
class Written:
    """What was written after one prompt, token by token."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the sampling distribution; 0 where forced
    forced: list[bool] = field(default_factory=list)


def decode(
    vlm: VisionLanguageModel,
    prompts: list[Encoded],
    tokenizer: Any,
    sampling: Sampling,
    seeds: list[int],
    budgets: list[ThinkingBudget | None],
    copies: int = 1,
) -> list[Written]:
    """``copies`` answers to each prompt, those of the first prompt first. P prompts, R = P * copies rows.

    1. prefill: all prompts packed in one row, pictures and prompts computed once, whatever ``copies`` is;
    2. the cache is unpacked into one row an answer;
    3. each step: the budget may force a token; the others are drawn from the sampling distribution;
    4. rows that wrote ``</s>`` leave the batch.

    Args:
        seeds: one a prompt.
        budgets: one a prompt; None = no rule.
    """
    device = vlm.decoder.output_weight.device
    cache = KVCache(vlm.decoder.cache_shape()[0])
    batch = pack([prompts], sum(map(len, prompts)), tokenizer.pad_token_id).to(device)
    hidden = vlm(batch, cache=cache)
    cache.unpack(batch.cu_seqlens.tolist(), sampling.max_new_tokens, copies)
    last = hidden[0, batch.cu_seqlens[1:].long() - 1].repeat_interleave(copies, dim=0)
    chooser = _Chooser(vlm, tokenizer, sampling, seeds, budgets, copies)
    out = [Written() for _ in range(len(prompts) * copies)]
    alive = list(range(len(out)))
    for step in range(sampling.max_new_tokens):
        tokens, logprobs, forced = chooser(last @ vlm.decoder.output_weight.T, step)
        for row, token, logprob, put in zip(alive, tokens.tolist(), logprobs.tolist(), forced.tolist()):
            out[row].ids.append(token)
            out[row].logprobs.append(logprob)
            out[row].forced.append(put)
        going = (tokens != tokenizer.eos_token_id).nonzero().flatten()
        if not len(going) or step + 1 == sampling.max_new_tokens:
            break
        if len(going) < len(alive):
            alive, tokens = [alive[i] for i in going.tolist()], tokens[going]
            cache.keep(going.to(device))
            chooser.keep(going)
        last = _step(vlm, cache, tokens.to(device))
    return out


class _Chooser:
    """Chooses the next token of every row that is still alive."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        tokenizer: Any,
        sampling: Sampling,
        seeds: list[int],
        budgets: list[ThinkingBudget | None],
        copies: int,
    ) -> None:
        self.sampling, self.never = sampling, forbidden(vlm.vocab_size, tokenizer)
        rows = [budget for budget in budgets for _ in range(copies)]
        self.budget = BudgetState(rows, sampling.max_new_tokens, tokenizer) if any(budgets) else None
        self.numbers: Tensor | None = None
        if sampling.temperature:
            drawn = [uniforms(seed, copy, sampling.max_new_tokens) for seed in seeds for copy in range(copies)]
            self.numbers = torch.stack(drawn)

    def __call__(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """logits float[R, V] -> on the CPU: tokens int64[R], log-probabilities float32[R], forced bool[R]."""
        blocked = self.never[None].to(logits.device)
        forced = torch.full((len(logits),), -1)
        if self.budget is not None:
            forced = self.budget.forced()
            pairs = torch.tensor([[self.budget.tokens.end, self.budget.tokens.think]])
            stops = self.budget.blocked()
            blocked = blocked.repeat(len(logits), 1)
            blocked.scatter_(1, pairs.expand(len(logits), 2).to(logits.device), stops.to(logits.device))
        distribution = log_distribution(logits, self.sampling, blocked)
        if self.numbers is None:
            tokens = distribution.argmax(-1)
        else:
            tokens = draw(distribution, self.numbers[:, step].to(logits.device))
        logprobs = distribution.gather(1, tokens[:, None])[:, 0].cpu()
        put = forced >= 0
        tokens = torch.where(put, forced, tokens.cpu())
        if self.budget is not None:
            self.budget.advance(tokens)
        return tokens, logprobs.masked_fill(put, 0.0), put

    def keep(self, rows: Tensor) -> None:
        if self.budget is not None:
            self.budget.keep(rows)
        if self.numbers is not None:
            self.numbers = self.numbers[rows]


def _step(vlm: VisionLanguageModel, cache: KVCache, tokens: Tensor) -> Tensor:
    """One token a row through the decoder: tokens int64[R] -> hidden float[R, D]."""
    assert cache.lengths is not None
    positions = cache.lengths[:, None]
    hidden = vlm.decoder(vlm.decoder.embed(tokens[:, None]), positions, cache=cache, mask=cache.mask())
    cache.advance()
    return hidden[:, 0]


def forbidden(vocab_size: int, tokenizer: Any) -> Tensor:
    """bool[V]: turn markers, image tokens and padding rows of the vocabulary are never drawn, nor scored."""
    allowed = {chat.THINK, chat.END_THINK, chat.END}
    ids = [tokenizer.convert_tokens_to_ids(token) for token in chat.SPECIAL_TOKENS if token not in allowed]
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[len(tokenizer) :] = True
    mask[ids] = True
    return mask
