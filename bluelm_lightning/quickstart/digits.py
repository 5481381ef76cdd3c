"""Digits in pictures: their sum as a question, their reading as a caption. The pictures: see `digit_pictures`.

Our choices: pictures of `digit_sums` and of `digit_reading` come from separate random streams; the thinking reads the
digits and then adds one at a time, so that each step needs one small sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

from bluelm_lightning.quickstart.digit_pictures import CANVASES, Canvases, pictures
from bluelm_lightning.types import Message, Sample

QUESTIONS = (
    "What is the sum of the digits?",
    "Sum of the digits?",
    "Add up the digits.",
    "What do the digits add up to?",
)
_SUMS, _READING = 0, 1  # random streams


def sum_trace(digits: list[int]) -> str:
    """The thinking: read, then add one digit at a time. ``[3, 5, 2, 9] -> "3 5 2 9: 3+5=8 8+2=10 10+9=19"``."""
    totals = list(accumulate(digits))
    steps = [f"{before}+{digit}={after}" for (before, after), digit in zip(pairwise(totals), digits[1:])]
    return f"{' '.join(map(str, digits))}: {' '.join(steps) or totals[-1]}"


def digit_sums(
    split: str, count: int, seed: int = 0, num_digits: int | tuple[int, int] = 4, thinking: bool | None = None
) -> Iterator[Sample]:
    """Conversations that ask for the sum of the digits in one picture.

    Args:
        split: "train" or "test"; no scan is in both.
        num_digits: digits in a picture, or a (lowest, highest) range; at most 8.
        thinking: with the trace of `sum_trace`, without, or by turns (None).
    """
    low, high = (num_digits, num_digits) if isinstance(num_digits, int) else num_digits
    for index, (rng, digits, scans, png) in enumerate(pictures(split, count, seed, _SUMS, low, high)):
        answer = str(sum(digits))
        question = QUESTIONS[rng.integers(len(QUESTIONS))]
        reply: Message = {"role": "assistant", "content": answer}
        if index % 2 == 0 if thinking is None else thinking:
            reply["thinking"] = sum_trace(digits)
        yield Sample(
            id=f"digits_sum-{split}-{seed}-{index:06d}",
            source="digits_sum",
            messages=[{"role": "user", "content": f"<image>{question}"}, reply],
            images=[png],
            task="digits_sum",
            answer=answer,
            meta={"digits": digits, "scans": scans},
        )


def digit_reading(
    split: str, count: int, seed: int = 0, num_digits: tuple[int, int] = (1, 6), canvases: Canvases = CANVASES
) -> Iterator[Sample]:
    """Pre-training documents that read the digits of a picture, ``"<image>3 5 2 9"``."""
    for index, (_, digits, scans, png) in enumerate(pictures(split, count, seed, _READING, *num_digits, canvases)):
        yield Sample(
            id=f"digits_caption-{split}-{seed}-{index:06d}",
            source="digits_caption",
            text=f"<image>{' '.join(map(str, digits))}",
            images=[png],
            meta={"digits": digits, "scans": scans},
        )
