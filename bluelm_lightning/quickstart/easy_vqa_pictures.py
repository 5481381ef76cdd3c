"""What each easy-VQA picture shows, derived from its questions.

Source: the easy-vqa 1.0 package (PyPI, MIT), its own train / test split: 38,575 questions on 4,000 pictures and 9,673
on 1,000, each picture one shape of one colour. The package does not name them, so they are derived from the picture's
own questions: what a question presupposes, what its answer grants or denies, and elimination. That describes 3,578
training and 888 test pictures in full; the others stay undescribed, so that a description is always whole.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bluelm_lightning.errors import ConfigError, DataError

SPLITS = ("train", "test")
SHAPES = frozenset({"circle", "rectangle", "triangle"})
COLORS = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})


class Question(NamedTuple):
    """One line of the package's questions.json: ``("is there a red shape?", "no", 17)``, and its place in the file."""

    text: str
    answer: str
    picture: int
    index: int  # type: ignore[assignment]  # hides tuple.index


def _folder(split: str) -> Path:
    import easy_vqa

    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is not one of {SPLITS}; name one of them")
    return Path(easy_vqa.__file__).parent / "data" / split


@cache
def by_picture(split: str) -> dict[int, list[Question]]:
    """The questions of each picture.

    Raises ConfigError: if `split` is neither train nor test.
    """
    grouped = defaultdict(list)
    for index, (text, answer, picture) in enumerate(json.loads((_folder(split) / "questions.json").read_text())):
        grouped[picture].append(Question(text, answer, picture, index))
    return dict(grouped)


def png(split: str, picture: int) -> bytes:
    """The picture as the package stores it: PNG, RGB, 64 x 64."""
    return (_folder(split) / "images" / f"{picture}.png").read_bytes()


def _narrow(left: set[str], kinds: frozenset[str], question: Question) -> set[str]:
    """Which of the shapes, or of the colours, are left after one more question and its answer."""
    words = set(re.findall("[a-z]+", question.text))
    if question.answer not in ("yes", "no"):
        return left & (kinds & (words | {question.answer}) or kinds)  # "what color is the circle?" "red": both
    granted = (question.answer == "yes") != bool(words & {"no", "not"})
    return left & (kinds & words or kinds) if granted else left - words


def describe(asked: list[Question]) -> str | None:
    """``"a red circle"``, or None when the questions of a picture do not settle both shape and colour.

    Raises DataError: if they contradict each other.
    """
    settled: list[str] = []
    for kinds in (COLORS, SHAPES):
        left = set(kinds)
        for question in asked:
            left = _narrow(left, kinds, question)
        if not left:
            raise DataError("its questions contradict each other; reinstall easy-vqa", f"picture {asked[0].picture}")
        settled += left if len(left) == 1 else []
    return f"a {' '.join(settled)}" if len(settled) == 2 else None


@cache
def descriptions(split: str) -> dict[int, str | None]:
    """`describe` for every picture of a split, ``{17: "a red circle"}``."""
    return {picture: describe(asked) for picture, asked in by_picture(split).items()}
