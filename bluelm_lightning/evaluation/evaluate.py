"""Accuracy of one model on held-out samples, in thinking and in non-thinking mode, from the same weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.errors import DataError
from bluelm_lightning.evaluation.scoring import exact_match, wilson_interval
from bluelm_lightning.generation import generate
from bluelm_lightning.types import Generation, Sample

MODES = {"thinking": True, "non_thinking": False}


@dataclass
class Answered:
    """One sample, what the model wrote, and whether it was right."""

    sample: Sample
    generation: Generation
    right: bool


@dataclass
class TaskResult:
    """Result of one task in one mode.

    Args:
        accuracy: share of right answers; an unclosed <think> counts as wrong.
        n: samples.
        mean_tokens: mean number of tokens written.
        low: lower end of the accuracy's 95 % interval.
        high: its upper end.
        answered: share of samples with any answer.
        thought: share of samples in which the model opened <think>.
    """

    accuracy: float
    n: int
    mean_tokens: float
    low: float
    high: float
    answered: float
    thought: float


def answer_all(
    vlm: VisionLanguageModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    thinking: bool,
    max_new_tokens: int = 128,
    batch_size: int = 128,
    score: Callable[[str | None, str], bool] = exact_match,
) -> list[Answered]:
    """Greedy answers to the last turn of each sample.

    Raises:
        DataError: a sample has no reference answer.
    """
    for sample in samples:
        if sample.answer is None:
            raise DataError("no reference answer; set the field answer", sample.where or sample.id)
    prompts = [encoder.prompt(sample, thinking) for sample in samples]
    written = generate(vlm, prompts, encoder.tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [Answered(s, g, score(g.answer, str(s.answer))) for s, g in zip(samples, written)]


def summarise(answered: Sequence[Answered]) -> dict[str, TaskResult]:
    """Results by task. ``easy_vqa.shape`` counts for ``easy_vqa.shape`` and for ``easy_vqa``."""
    groups: dict[str, list[Answered]] = defaultdict(list)
    for item in answered:
        parts = item.sample.task.split(".")
        for end in range(1, len(parts) + 1):
            groups[".".join(parts[:end])].append(item)
    return {task: _result(items) for task, items in sorted(groups.items())}


def _result(items: list[Answered]) -> TaskResult:
    right, n = sum(item.right for item in items), len(items)
    low, high = wilson_interval(right, n)
    return TaskResult(
        accuracy=right / n,
        n=n,
        mean_tokens=sum(item.generation.num_tokens for item in items) / n,
        low=low,
        high=high,
        answered=sum(item.generation.answer is not None for item in items) / n,
        thought=sum(item.generation.thinking is not None for item in items) / n,
    )


def evaluate(
    vlm: VisionLanguageModel, encoder: Encoder, samples: Sequence[Sample], **options: Any
) -> tuple[dict[str, dict[str, TaskResult]], dict[str, list[Answered]]]:
    """``results[task][mode]`` and the answers by mode, both modes from the same weights."""
    answers = {mode: answer_all(vlm, encoder, samples, thinking, **options) for mode, thinking in MODES.items()}
    by_mode = {mode: summarise(items) for mode, items in answers.items()}
    tasks = by_mode["thinking"]
    return {task: {mode: by_mode[mode][task] for mode in MODES} for task in tasks}, answers
