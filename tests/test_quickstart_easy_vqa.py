"""The quickstart's easy-VQA: every question once, and descriptions that the pixels confirm."""

import io
import re
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from bluelm_lightning.errors import DataError
from bluelm_lightning.quickstart import easy_vqa
from bluelm_lightning.quickstart.easy_vqa_pictures import Question, describe

RGB = {"black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128)}
RGB |= {"green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0)}
FILL = {
    "rectangle": (1.0, 1.0),
    "circle": (0.72, 0.83),
    "triangle": (0.49, 0.69),
}  # share of the bounding box, measured


@pytest.mark.parametrize(
    ("split", "count", "described", "traced"), [("train", 38575, 3578, 35541), ("test", 9673, 888, 8879)]
)
def test_every_question_is_there(split, count, described, traced):
    samples = list(easy_vqa.questions(split, thinking=True))
    assert len(samples) == len({s.id for s in samples}) == count
    assert len(list(easy_vqa.captions(split))) == described
    assert sum("thinking" in s.messages[1] for s in samples) == traced  # every question on a described picture
    kinds = {s.task: set() for s in samples}
    for sample in samples:
        kinds[sample.task].add(sample.answer)
        assert sample.answer == sample.messages[1]["content"]
    assert kinds == {"easy_vqa.yes_no": {"yes", "no"}, "easy_vqa.shape": set(FILL), "easy_vqa.color": set(RGB)}


@pytest.mark.parametrize(("split", "count"), [("train", 38575), ("test", 9673)])
def test_a_pass_of_conversations_asks_every_question_once(split, count):
    samples = list(easy_vqa.conversations(split, turns=4, seed=1))
    assert sorted(chain(*(s.meta["questions"] for s in samples))) == list(range(count))
    assert any(s.meta["questions"] != sorted(s.meta["questions"]) for s in samples)
    assert 3.8 < count / len(samples) < 4.2
    answers = {tuple(s.meta["questions"]): s.answer for s in easy_vqa.questions(split, thinking=False)}
    for sample in samples[:500]:
        assert "".join(m["content"] for m in sample.messages).count("<image>") == len(sample.images) == 1
        replies = sample.messages[1::2]
        assert [r["content"] for r in replies] == [answers[(index,)] for index in sample.meta["questions"]]
        assert sample.answer == replies[-1]["content"]
        assert len({r.get("thinking") for r in replies}) == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_descriptions_agree_with_the_pixels(split):
    checked = 0
    for sample in easy_vqa.captions(split):
        color, shape = re.fullmatch(r"<image>a (\w+) (\w+)", sample.text).groups()
        inked = (np.asarray(Image.open(io.BytesIO(sample.images[0]))) == RGB[color]).all(axis=2)
        spots = np.argwhere(inked)
        assert len(spots), f"{sample.id}: no {color} pixel"
        if spots.min() > 0 and spots.max() < 63:  # not cut by the edge, so that its fill tells its shape
            share = len(spots) / (np.ptp(spots, axis=0) + 1).prod()
            assert FILL[shape][0] <= share <= FILL[shape][1], (
                f"{sample.id}: fills {share:.2f} of its box, not a {shape}"
            )
            checked += 1
    assert checked > 800


RED = ("what is the color of the shape?", "red")
NO_TRIANGLE, NO_RECTANGLE = ("is there a triangle?", "no"), ("is there not a rectangle?", "yes")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([RED, ("is no circle present?", "no")], "a red circle"),
        ([NO_TRIANGLE, RED, NO_RECTANGLE], "a red circle"),  # by elimination
        ([("what is the teal shape?", "triangle")], "a teal triangle"),  # by what the question presupposes
        ([RED, NO_TRIANGLE], None),
        ([("is a circle present?", "yes")], None),
    ],
)
def test_derivation_by_hand(asked, expected):
    assert describe([Question(text, answer, 0, 0) for text, answer in asked]) == expected


def test_a_contradiction_is_an_error():
    asked = [Question(*RED, 17, 0), Question("is there a red shape?", "no", 17, 1)]
    with pytest.raises(DataError, match="picture 17: its questions contradict"):
        describe(asked)
