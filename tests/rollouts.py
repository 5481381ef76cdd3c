"""Rollouts from texts, for tests of rewards."""

import torch
from tiny import prompt, question, tiny_tokenizer

from bluelm_lightning.data import chat
from bluelm_lightning.generation.budget import ThinkingTokens, count_thinking
from bluelm_lightning.types import Generation, Prompt, Rollout


def rollout(text: str, answer: str | None = "8", group: int = 0, thinking: bool = True, **meta) -> Rollout:
    """What would have come of writing ``text``; without ``</s>`` at its end it was cut by the limit."""
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    finished = text.endswith(chat.END)
    kept = text.removesuffix(chat.END)
    trace, said = chat.parse_generation(kept)
    written = Generation(ids[: len(ids) - finished], kept, trace, said if finished else None, len(ids), finished)
    sample = question(answer="8", id=f"s{group}", meta=dict(meta))
    sample.answer = answer
    tokens, markers = torch.tensor(ids, dtype=torch.long), ThinkingTokens.of(tiny_tokenizer())
    closed = (tokens == markers.end_think).nonzero().flatten().tolist()
    return Rollout(
        prompt=Prompt(sample, prompt(thinking=thinking), thinking),
        group=group,
        ids=tokens,
        logprobs=torch.zeros(len(ids)),
        forced=torch.zeros(len(ids), dtype=torch.bool),
        generation=written,
        thinking_tokens=count_thinking(tokens, markers),
        answer_start=closed[-1] + 1 if closed else 0,
    )
