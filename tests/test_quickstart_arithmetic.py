"""The quickstart's arithmetic: answers and steps that are right, and no question in both splits."""

import re
from itertools import pairwise

import pytest

from bluelm_lightning.errors import DataError
from bluelm_lightning.quickstart import arithmetic


def _terms(trace, answer):
    """The terms of a trace whose every step is true and starts from the total before it, up to the answer."""
    steps = re.findall(r"(-?\d+)([+-]\d+)=(-?\d+)", trace)
    assert all(int(a) + int(b) == int(c) for a, b, c in steps)
    assert all(before[2] == after[0] for before, after in pairwise(steps))
    assert trace.endswith(f"={answer}")
    return [steps[0][0], *(b for _, b, _ in steps)]


def test_arithmetic_is_right_and_split_by_terms():
    train, test = list(arithmetic.arithmetic("train", 1500)), list(arithmetic.arithmetic("test", 1500, seed=1))
    for sample in train + test:
        question, reply = sample.messages[0]["content"].removesuffix("=?"), sample.messages[1]
        assert re.fullmatch(r"\d{1,2}([+-]\d{1,2}){2,3}", question)
        assert reply["content"] == sample.answer == str(eval(question))
        assert "thinking" not in reply or "".join(_terms(reply["thinking"], sample.answer)) == question
    asked = [[s.messages[0]["content"] for s in side] for side in (train, test)]
    asked[0] += [s.text for s in arithmetic.arithmetic_text(500)]
    leading = [[re.match(r"[\d+-]+", text)[0] for text in side] for side in asked]
    assert [len(set(leading[0][:1500])), len(set(leading[1]))] == [1500, 1500]
    terms = [{tuple(sorted(map(int, re.findall(r"[+-]?\d+", text)))) for text in side} for side in leading]
    assert not terms[0] & terms[1]


def test_arithmetic_text_shows_answers_and_steps_by_turns():
    short, steps = (sample.text for sample in arithmetic.arithmetic_text(2))
    assert eval(short.replace("=", "=="))
    question, trace = steps.split(": ")
    assert "".join(_terms(trace, eval(question))) == question


def test_arithmetic_yields_nothing_that_the_scorer_rejects(monkeypatch):
    import reasoning_gym

    generator = type(reasoning_gym.create_dataset("chain_sum", size=1))
    monkeypatch.setattr(generator, "score_answer", lambda self, answer, entry: 0.0)
    with pytest.raises(DataError, match="is not the answer"):
        next(arithmetic.arithmetic("train", 1))
