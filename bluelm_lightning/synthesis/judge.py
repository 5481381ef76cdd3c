"""Replies as the verifiers see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bluelm_lightning.rl.rewards import RewardRouter
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.questions import Question
from bluelm_lightning.synthesis.select import Reply
from bluelm_lightning.types import Encoded, Generation, Prompt, Rollout

_NONE = torch.empty(0, dtype=torch.long)


def judged(
    plan: SynthesisPlan, whole: Sequence[tuple[Question, list[Generation]]]
) -> Iterator[tuple[str, list[Reply]]]:
    """The replies with their scores, by the question's key; all of a question, for a verifier may compare them."""
    rollouts = [
        as_rollout(question, made, group, plan.thinking)
        for group, (question, replies) in enumerate(whole)
        for made in replies
    ]
    scores: list[dict[str, float]] = [{} for _ in rollouts]
    if plan.verifiers:
        scored = RewardRouter(plan.verifiers, on_error="stop").score(rollouts)
        scores = [{n: s.value for n, s in one.rewards.items() if s.value is not None} for one in scored]
    verdicts = {name for name, reward in plan.verifiers.items() if reward.verdict}
    found = iter(scores)
    for question, replies in whole:
        pairs = ((g, next(found)) for g in replies)
        yield (
            question.key,
            [Reply(g.thinking, g.answer, g.num_tokens, g.finished, s, bool(verdicts & set(s))) for g, s in pairs],
        )


def as_rollout(question: Question, made: Generation, group: int, thinking: bool) -> Rollout:
    """A reply in the form in which rewards read it; an endpoint's has text but no ids."""
    ids = torch.tensor(made.ids, dtype=torch.long)
    empty = Encoded(question.sample.id, question.sample.source, _NONE, _NONE, torch.empty(0, 3, 1, 1).byte(), _NONE)
    prompt = Prompt(question.sample, empty, thinking, seed=question.seed)
    return Rollout(prompt, group, ids, torch.zeros(len(ids)), torch.zeros(len(ids), dtype=torch.bool), made, 0)
