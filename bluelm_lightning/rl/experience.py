"""From rollouts and their advantages to packed micro-batches of experience."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bluelm_lightning.data.packing import pack
from bluelm_lightning.generation.budget import ThinkingBudget, ThinkingTokens, blocked_in
from bluelm_lightning.types import IGNORE, Encoded, Experience, Rollout


def whole(rollout: Rollout) -> Encoded:
    """Prompt and answer as one document: labels are the answer's tokens, the last of which is no input."""
    prompt, written = rollout.prompt.encoded, rollout.ids
    ids = torch.cat([prompt.ids, written[:-1]])
    labels = torch.full_like(ids, IGNORE)
    labels[len(prompt.ids) - 1 :] = written
    return Encoded(prompt.id, prompt.source, ids, labels, prompt.tiles, prompt.image_positions)


def deal(rollouts: Sequence[Rollout], parts: int) -> list[list[int]]:
    """Places of the rollouts in ``parts`` heaps of equal number and about equal tokens: the longest are dealt first."""
    order = sorted(range(len(rollouts)), key=lambda i: (-len(rollouts[i].ids) - len(rollouts[i].prompt.encoded), i))
    heaps: list[list[int]] = [[] for _ in range(parts)]
    for number, i in enumerate(order):
        turn, place = divmod(number, parts)
        heaps[place if turn % 2 == 0 else parts - 1 - place].append(
            i
        )  # there and back, so that no heap gets all firsts
    return [sorted(heap) for heap in heaps]


def pack_experience(
    rollouts: Sequence[Rollout],
    advantages: Tensor,
    budget: ThinkingBudget | None,
    max_new_tokens: int,
    tokens: ThinkingTokens,
    pad_id: int,
) -> Experience:
    """One micro-batch: rollouts packed in one row.

    Args:
        rollouts: R of them, none of them empty.
        advantages: float32[R] or float32[M] (for each token).
        budget: reserve of the rule under which they were written; None: no rule.
        max_new_tokens: limit under which they were written.
        tokens: ids of the markers.
        pad_id: token id of padding.
    """
    docs = [whole(rollout) for rollout in rollouts]
    lengths = torch.tensor([len(rollout.ids) for rollout in rollouts])
    index = torch.arange(len(rollouts)).repeat_interleave(lengths)
    budgets = [budget.of(rollout.prompt.budget) if budget is not None else None for rollout in rollouts]
    stops = [blocked_in(rollout.ids, b, max_new_tokens, tokens) for rollout, b in zip(rollouts, budgets)]
    learned = ~torch.cat([rollout.forced for rollout in rollouts])
    return Experience(
        **vars(pack([docs], sum(map(len, docs)), pad_id)),
        rollout=index,
        advantages=(advantages[index] if len(advantages) == len(rollouts) else advantages).float(),
        behaviour=torch.cat([rollout.logprobs for rollout in rollouts]),
        old=torch.full((len(index),), float("nan")),
        learned=learned,
        stops=torch.cat(stops),
        num_sequences=len(rollouts),
        num_learned=int(learned.sum()),
    )
