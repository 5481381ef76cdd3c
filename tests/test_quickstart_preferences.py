"""The quickstart's preferences: the chosen answer is right, the rejected one slips once and looks the same."""

import re
from itertools import pairwise

from tiny import tiny_tokenizer

from bluelm_lightning.data.pairs import PairEncoder
from bluelm_lightning.quickstart.preferences import preferences, slipped
from bluelm_lightning.types import ImageSpec


def steps(answer):
    return [tuple(map(int, step)) for step in re.findall(r"(-?\d+)([+-]\d+)=(-?\d+)", answer.get("thinking", ""))]


def test_one_answer_is_right_and_the_other_slips_once():
    pairs = list(preferences("train", 40, seed=2))
    assert [len(pair.images) for pair in pairs] == [1, 0] * 20
    assert {bool(steps(pair.meta["chosen"])) for pair in pairs[::2]} == {True, False}
    for pair in pairs:
        chosen, rejected = pair.meta["chosen"], pair.meta["rejected"]
        assert chosen["content"] == pair.answer != rejected["content"]
        right, wrong = steps(chosen), steps(rejected)
        assert len(right) == len(wrong)
        assert all(a + b == c for a, b, c in right)
        assert sum(a + b != c for a, b, c in wrong) == bool(wrong)
        for answer, found in ((chosen, right), (rejected, wrong)):
            assert all(before[2] == after[0] for before, after in pairwise(found))
            assert not found or answer["content"] == str(found[-1][2])
    asked = [
        {pair.messages[0]["content"] for pair in preferences(split, 40) if not pair.images}
        for split in ("train", "test")
    ]
    assert not asked[0] & asked[1]


def test_a_slip_is_carried_on():
    assert slipped("3 5 2: 3+5=8 8+2=10", 1, 1) == "3 5 2: 3+5=8 8+2=11"
    assert slipped("12-7=5 5-9=-4 -4+3=-1", 0, -10) == "12-7=-5 -5-9=-14 -14+3=-11"


def test_its_records_are_what_the_data_module_reads():
    encoder = PairEncoder(tiny_tokenizer(), ImageSpec(64, 4))
    for pair in preferences("test", 4):
        chosen, rejected = encoder(pair).parts
        assert not chosen.ids.equal(rejected.ids)
        assert len(chosen.tiles) == len(rejected.tiles) == len(pair.images) * len(chosen.tiles)
