"""The in-process engine: answers as text, and rollouts for reinforcement learning, from the same decoding loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data import chat
from bluelm_lightning.generation.budget import ThinkingBudget, ThinkingTokens, count_thinking
from bluelm_lightning.generation.decode import Written, decode
from bluelm_lightning.generation.sampling import Sampling
from bluelm_lightning.types import Encoded, Generation, Prompt, Rollout


@torch.no_grad()
def generate(
    vlm: VisionLanguageModel,
    prompts: list[Encoded],
    tokenizer: Any,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    budget: ThinkingBudget | Sequence[ThinkingBudget | None] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Generation]:
    """Continue each prompt until ``</s>`` or the limit.

    Args:
        vlm: the model; the mode of each module is restored afterwards, and the global random state is not touched.
        prompts: encoded prompts.
        tokenizer: the prompts' tokenizer.
        max_new_tokens: limit of new tokens a prompt.
        temperature: 0 = greedy.
        top_k, top_p: truncation, see :class:`Sampling`.
        budget: for all prompts, or one a prompt; None = thinking is free.
        batch_size: prompts decoded together; long and short ones are grouped by length.
        seed: of the sampling; prompt number i has its own random numbers from ``(seed, i)``.

    Returns:
        One :class:`Generation` a prompt, in the order given.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p)
    single = budget is None or isinstance(budget, ThinkingBudget)
    budgets = [budget] * len(prompts) if single else list(budget)  # type: ignore[arg-type]
    seeds = [seed * 1_000_003 + i for i in range(len(prompts))]
    results: dict[int, Generation] = {}
    with evaluating(vlm):
        for rows in by_length(prompts, batch_size):
            picked = [prompts[i] for i in rows]
            written = decode(vlm, picked, tokenizer, sampling, [seeds[i] for i in rows], [budgets[i] for i in rows])  # type: ignore[misc]
            results.update(zip(rows, (generation_of(item, tokenizer) for item in written)))
    return [results[i] for i in range(len(prompts))]


@torch.no_grad()
def roll_out(
    vlm: VisionLanguageModel,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    sampling: Sampling,
    group_size: int,
    budget: ThinkingBudget | None = None,
    batch_size: int = 16,
    step: int = 0,
) -> list[Rollout]:
    """``group_size`` answers to each prompt, with the log-probabilities of the distribution they were drawn from.

    Args:
        vlm: the policy; used as :func:`generate` does.
        prompts: with mode, budget and seed of each.
        tokenizer: the prompts' tokenizer.
        sampling: the policy that is scored later is this distribution.
        group_size: answers a prompt; they share one prefill.
        budget: reserve and closing text; each prompt's own number of tokens goes into it. None: no rule for anyone.
        batch_size: prompts decoded together.
        step: optimizer step of the weights, for staleness.

    Returns:
        Rollouts, those of the first prompt first.
    """
    groups: dict[int, list[Rollout]] = {}
    with evaluating(vlm):
        for rows in by_length([prompt.encoded for prompt in prompts], batch_size):
            picked = [prompts[i] for i in rows]
            budgets = [budget.of(p.budget) if budget is not None else None for p in picked]
            encoded, seeds = [p.encoded for p in picked], [p.seed for p in picked]
            written = decode(vlm, encoded, tokenizer, sampling, seeds, budgets, group_size)
            for place, i in enumerate(rows):
                group = written[place * group_size : (place + 1) * group_size]
                groups[i] = [rollout_of(item, prompts[i], i, tokenizer, step) for item in group]
    return [rollout for i in range(len(prompts)) for rollout in groups[i]]


class RolloutEngine:
    """Writes rollouts. This one decodes in this process; a subclass may ask a server.

    A subclass defines :meth:`write` with the same arguments and the same records, log-probabilities included.
    """

    def write(
        self,
        vlm: VisionLanguageModel,
        prompts: Sequence[Prompt],
        tokenizer: Any,
        sampling: Sampling,
        group_size: int,
        budget: ThinkingBudget | None,
        batch_size: int,
        step: int,
    ) -> list[Rollout]:
        """See :func:`roll_out`; ``vlm`` holds the weights that must write.

        Of several processes each calls it equally often, one with nothing left to ask without prompts.
        """
        return roll_out(vlm, prompts, tokenizer, sampling, group_size, budget, batch_size, step)


@contextmanager
def evaluating(vlm: VisionLanguageModel) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own: a frozen tower may be in evaluation mode by itself."""
    modes = {module: module.training for module in vlm.modules()}
    vlm.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def by_length(prompts: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Places of the prompts in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def generation_of(written: Written, tokenizer: Any) -> Generation:
    finished = bool(written.ids) and written.ids[-1] == tokenizer.eos_token_id
    kept = written.ids[:-1] if finished else written.ids
    text = tokenizer.decode(kept, skip_special_tokens=False)
    thinking, answer = chat.parse_generation(text)
    return Generation(kept, text, thinking, answer if finished else None, len(kept), finished)


def rollout_of(written: Written, prompt: Prompt, group: int, tokenizer: Any, step: int) -> Rollout:
    ids, tokens = torch.tensor(written.ids, dtype=torch.long), ThinkingTokens.of(tokenizer)
    return Rollout(
        prompt=prompt,
        group=group,
        ids=ids,
        logprobs=torch.tensor(written.logprobs, dtype=torch.float32),
        forced=torch.tensor(written.forced, dtype=torch.bool),
        generation=generation_of(written, tokenizer),
        thinking_tokens=count_thinking(ids, tokens),
        step=step,
        answer_start=max((place + 1 for place, i in enumerate(written.ids) if i == tokens.end_think), default=0),
    )
