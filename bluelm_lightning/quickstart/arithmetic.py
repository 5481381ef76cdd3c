"""Sums and differences as text: ``12+7-4=?`` with the steps ``12+7=19 19-4=15``.

Source: ``chain_sum`` of reasoning-gym 0.1.25 (PyPI, Apache-2.0), 3 to 4 terms of 1 to 2 digits, its expression without
the sentence around it; its scorer accepts every answer that is yielded. Our choices: the steps, and the split: a hash
of the signed terms sends one question in five to test, so 12+7-4 and 7+12-4 are never on both sides.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from itertools import count as numbers

from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Message, Sample

SPLITS = ("train", "test")
_QUESTIONS, _TEXT = 0, 1  # random streams


def split_of(terms: list[str]) -> str:
    """The split that a question belongs to, whatever the order of its signed terms."""
    return "test" if zlib.crc32(repr(sorted(map(int, terms))).encode()) % 5 == 0 else "train"


def step_trace(terms: list[str]) -> str:
    """The thinking, one term at a time. ``["12", "+7", "-4"] -> "12+7=19 19-4=15"``."""
    totals = list(accumulate(map(int, terms)))
    return " ".join(f"{before}{term}={after}" for (before, after), term in zip(pairwise(totals), terms[1:]))


def _problems(split: str, count: int, seed: int, stream: int) -> Iterator[tuple[str, list[str], str]]:
    """Yields `count` different (question, signed terms, answer): ("12+7-4", ["12", "+7", "-4"], "15")."""
    import reasoning_gym

    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is not one of {SPLITS}; name one of them")
    # The generator draws item i from seed + i: seeds must lie far apart, or their questions would be the same.
    shape = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2}
    generator = reasoning_gym.create_dataset("chain_sum", seed=(2 * seed + stream) << 32, **shape)
    seen: set[str] = set()
    for index in numbers():
        if len(seen) == count:
            return
        entry = generator[index]
        expression = entry["metadata"]["expression"]
        terms = expression.replace("+ ", "+").replace("- ", "-").split()  # strings: an int would lose the sign of -0
        answer = str(sum(map(int, terms)))
        if expression in seen or split_of(terms) != split:
            continue
        if generator.score_answer(answer, entry) != 1.0:
            raise DataError(f"{answer} is not the answer {entry['answer']} of chain_sum; report this", expression)
        seen.add(expression)
        yield "".join(terms), terms, answer


def arithmetic(split: str, count: int, seed: int = 0, thinking: bool | None = None) -> Iterator[Sample]:
    """Conversations of one question, all different.

    Args:
        split: "train" or "test"; no question is in both, whatever the seeds.
        thinking: with the steps of `step_trace`, without, or by turns (None).
    """
    for index, (expression, terms, answer) in enumerate(_problems(split, count, seed, _QUESTIONS)):
        reply: Message = {"role": "assistant", "content": answer}
        if index % 2 == 0 if thinking is None else thinking:
            reply["thinking"] = step_trace(terms)
        yield Sample(
            id=f"arithmetic-{split}-{seed}-{index:06d}",
            source="arithmetic",
            messages=[{"role": "user", "content": f"{expression}=?"}, reply],
            task="arithmetic",
            answer=answer,
        )


def arithmetic_text(count: int, seed: int = 0) -> Iterator[Sample]:
    """Pre-training documents of the training split, by turns ``"12+7-4=15"`` and ``"12+7-4: 12+7=19 19-4=15"``."""
    for index, (expression, terms, answer) in enumerate(_problems("train", count, seed, _TEXT)):
        text = f"{expression}: {step_trace(terms)}" if index % 2 else f"{expression}={answer}"
        yield Sample(id=f"arithmetic_text-{seed}-{index:06d}", source="arithmetic_text", text=text)
