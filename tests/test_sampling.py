"""The sampling distribution and its draws, by hand."""

import math

import pytest
import torch

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.generation.sampling import draw, log_distribution, uniforms

LOGITS = torch.tensor([[math.log(0.1), math.log(0.4), math.log(0.2), math.log(0.3)]])
NONE = torch.zeros(4, dtype=torch.bool)


def probs(blocked=NONE, kept=None, **options) -> list[float]:
    return log_distribution(LOGITS, Sampling(**{"temperature": 1.0, **options}), blocked, kept).exp()[0].tolist()


def test_truncation_by_hand():
    assert probs() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert probs(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probs(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probs(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])  # the token that crosses the share stays
    assert probs(top_p=0.01) == pytest.approx([0, 1, 0, 0])
    assert probs(top_k=3, top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7])  # of 4/9, 3/9, 2/9 two are needed
    assert probs(temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])


def test_blocked_tokens_have_no_share_and_the_drawn_one_is_kept():
    blocked = torch.tensor([False, True, False, False])
    assert probs(blocked) == pytest.approx([1 / 6, 0, 2 / 6, 3 / 6])
    assert probs(top_k=2, kept=torch.tensor([0])) == pytest.approx([0.1 / 0.8, 0.4 / 0.8, 0, 0.3 / 0.8])


def test_draws_by_inverse_transform():
    rows = LOGITS.repeat(6, 1)  # heights 0.1, 0.5, 0.7, 1
    numbers = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.9999], dtype=torch.float64)
    assert draw(rows, numbers).tolist() == [0, 0, 1, 1, 2, 3]
    never = log_distribution(LOGITS, Sampling(temperature=1.0), torch.tensor([True, False, False, True]))
    assert set(draw(never.repeat(100, 1), uniforms(0, 0, 100)).tolist()) == {1, 2}


def test_each_answer_has_its_own_numbers():
    assert torch.equal(uniforms(7, 1, 5), uniforms(7, 1, 9)[:5])
    seen = {float(uniforms(seed, copy, 1)) for seed in range(20) for copy in range(20)}
    assert len(seen) == 400


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"max_new_tokens": -1}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match="sampling"):
        Sampling(**wrong)
