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


def sum_trace(digits: list[int], slips: list[int] | None = None, style: str = "read") -> tuple[str, int]:
    """The thinking, and the sum it comes to: read, then add one digit at a time.

    ``[3, 5, 2, 9] -> "3 5 2 9: 3+5=8 8+2=10 10+9=19"``; with slips ``[0, 1, 0]`` the second step is one too many and
    the third goes on from there: ``"3 5 2 9: 3+5=8 8+2=11 11+9=20"``. The style ``terse`` leaves the reading out, and
    ``again`` adds a second time: ``"3 5 2 9: 3+5=8 8+2=10 10+9=19; 3+5=8 8+2=10 10+9=19"``; its slips are those of the
    first pass and then those of the second, whose sum counts.
    """
    passes, steps = 2 if style == "again" else 1, len(digits) - 1
    errors = slips or [0] * (steps * passes)
    added = [
        _addition(digits, errors[start : start + steps]) for start in range(0, max(steps, 1) * passes, max(steps, 1))
    ]
    text = "; ".join(text for text, _ in added)
    return text if style == "terse" else f"{' '.join(map(str, digits))}: {text}", added[-1][1]


def _addition(digits: list[int], slips: list[int]) -> tuple[str, int]:
    totals = list(accumulate(digit + error for digit, error in zip(digits, [0, *slips])))
    steps = [f"{before}+{digit}={after}" for (before, after), digit in zip(pairwise(totals), digits[1:])]
    return " ".join(steps) or str(totals[-1]), totals[-1]


def digit_sums(
    split: str,
    count: int,
    seed: int = 0,
    num_digits: int | tuple[int, int] = 4,
    thinking: bool | None = None,
    slip_share: float = 0.0,
    styles: dict[str, float] | None = None,
) -> Iterator[Sample]:
    """Conversations that ask for the sum of the digits in one picture.

    Args:
        split: "train" or "test"; no scan is in both.
        num_digits: digits in a picture, or a (lowest, highest) range; at most 8.
        thinking: with the trace of `sum_trace`, without, or by turns (None).
        slip_share: share of the steps that are one too many, as in traces of a weaker model that nobody checked. The
            conversation ends with the sum that its trace comes to; the reference ``answer`` is always the true one.
        styles: share of each style of `sum_trace`; default: all ``read``.
    """
    low, high = (num_digits, num_digits) if isinstance(num_digits, int) else num_digits
    for index, (rng, digits, scans, png) in enumerate(pictures(split, count, seed, _SUMS, low, high)):
        question = QUESTIONS[rng.integers(len(QUESTIONS))]
        slips = (rng.random(2 * len(digits) - 2) < slip_share).astype(int)
        style = str(rng.choice(list(styles), p=list(styles.values()))) if styles else "read"
        trace, total = sum_trace(digits, slips.tolist(), style)
        reply: Message = {"role": "assistant", "content": str(total)}
        if index % 2 == 0 if thinking is None else thinking:
            reply["thinking"] = trace
        yield Sample(
            id=f"digits_sum-{split}-{seed}-{index:06d}",
            source="digits_sum",
            messages=[{"role": "user", "content": f"<image>{question}"}, reply],
            images=[png],
            task="digits_sum",
            answer=str(sum(digits)),
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
