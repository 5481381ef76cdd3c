"""Rewards by rule, form and length, each on texts whose worth is plain."""

import pytest
import torch
from rollouts import rollout
from tiny import tiny_vlm

from bluelm_lightning.components import DiscriminativeRewardModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards import (
    BudgetOverlong,
    ExactMatch,
    Format,
    GroupOverlong,
    MultipleChoice,
    NumericMatch,
    Repetition,
    RewardModel,
)


def values(reward, rollouts):
    return [score.value for score in reward.score(rollouts)]


@pytest.mark.parametrize(
    ("reward", "reference", "right", "wrong"),
    [
        (ExactMatch(), "8", ["8</s>", " 8. </s>", "<think>3+5</think>8</s>"], ["9</s>", "the 8</s>", "</s>"]),
        (ExactMatch(), "Red", ["red</s>"], ["reddish</s>"]),
        (NumericMatch(), "1,234.5", ["it is 1234.50</s>", "\\boxed{1234.5} or 7</s>"], ["1234</s>", "none</s>"]),
        (NumericMatch(0.01), "100", ["100.9</s>", "-3, 99.5</s>"], ["102</s>", "-100</s>"]),
        (NumericMatch(), "2.5e-7", ["2.5e-7</s>", "0.00000025</s>"], ["0</s>", "-9e-7</s>", "2.51e-7</s>"]),
        (NumericMatch(0.1), "-0.5", ["-0.54</s>"], ["-0.56</s>", "0.5</s>"]),
        (NumericMatch(0.1), "0", ["0.0</s>", "-0</s>"], ["1e-9</s>"]),
        (MultipleChoice(), "B", ["B</s>", "(b)</s>", "B. red</s>", "so \\boxed{B}</s>"], ["Blue</s>", "A</s>", "</s>"]),
        (MultipleChoice(), "(C)", ["C</s>"], ["D</s>"]),
    ],
)
def test_right_and_wrong_answers(reward, reference, right, wrong):
    given = [rollout(text, reference) for text in right + wrong]
    assert values(reward, given) == [1.0] * len(right) + [0.0] * len(wrong)


def test_no_answer_is_wrong_and_no_reference_is_missing():
    cut, open_ = rollout("<think>3+5=8</think>8"), rollout("<think>8</s>")
    assert values(ExactMatch(), [cut, open_]) == [0.0, 0.0]
    (missing,) = ExactMatch().score([rollout("8</s>", None)])
    assert missing.value is None
    assert "no reference answer" in missing.reason


@pytest.mark.parametrize(
    ("text", "thinking", "wanted"),
    [
        ("<think>3+5</think>8</s>", True, 1.0),
        ("<think> </think>8</s>", True, 0.0),
        ("<think>3</think></s>", True, 0.0),
        ("<think>3<think>5</think>8</s>", True, 0.0),
        ("<think>3</think>8", True, 0.0),
        ("8</s>", True, 0.0),
        ("8</s>", False, 1.0),
        ("<think>3</think>8</s>", False, 0.0),
        ("8</think></s>", False, 0.0),
        ("</s>", False, 0.0),
    ],
)
def test_format_is_the_mode_obeyed(text, thinking, wanted):
    assert values(Format(), [rollout(text, thinking=thinking)]) == [wanted]


def test_repetition_is_the_share_of_ngrams_seen_before():
    once, looping = rollout("abcdefgh</s>"), rollout("ababababab</s>")
    assert values(Repetition(2), [once]) == [0.0]
    grams = len(looping.ids) - 1
    distinct = len({tuple(looping.ids[i : i + 2].tolist()) for i in range(grams)})
    assert values(Repetition(2), [looping]) == [pytest.approx(-(1 - distinct / grams))]
    assert distinct < grams / 2
    assert values(Repetition(2, tolerance=0.9), [looping]) == [0.0]
    assert values(Repetition(500), [looping]) == [0.0]


def thinks(tokens: int, answer: str, group: int = 0):
    made = rollout(f"<think>{'1' * tokens}</think>{answer}</s>", "8", group)
    assert made.thinking_tokens == tokens, "a digit is one token"
    return made


def test_group_overlong_compares_with_the_right_rollouts_of_the_group():
    group = [thinks(n, a) for n, a in ((4, "8"), (6, "8"), (8, "8"), (12, "9"), (2, "9"))]
    # right ones think 6 on average: 4 and 6 are free, 8 pays (8 - 6) / 6, 12 pays all, and a short guess gains nothing
    assert values(GroupOverlong(), group) == pytest.approx([0, 0, -1 / 3, -1, 0])
    assert values(GroupOverlong(span=2), group) == pytest.approx([0, 0, -1 / 6, -0.5, 0])
    assert values(GroupOverlong(gate=0.61), group) == [0.0] * 5  # three of five are right
    shortest = [n / 10 for n in (2, 4, 6, 10, 0)]
    wanted = [-s * (0.5 if i < 3 else 1) for i, s in enumerate(shortest)]
    assert values(GroupOverlong("min_max"), group) == pytest.approx(wanted)


def test_groups_do_not_mix_and_absolute_lengths_do_not_look_at_groups():
    short, long = [thinks(4, "8", 0), thinks(4, "8", 0)], [thinks(40, "8", 1), thinks(40, "8", 1)]
    assert values(GroupOverlong(), short + long) == [0.0] * 4
    soft = GroupOverlong("soft_overlong", max_tokens=40, cache_tokens=20)
    assert values(soft, [*long, thinks(30, "9", 1)]) == [-1.0, -1.0, -0.5]


@pytest.mark.parametrize("reward", [ExactMatch(), NumericMatch(), MultipleChoice(), Format(), Repetition(2)])
def test_a_score_does_not_depend_on_neighbours(reward):
    batch = [rollout(text, group=i) for i, text in enumerate(["8</s>", "<think>3</think>8</s>", "9", "ababab</s>"])]
    assert values(reward, batch) == [values(reward, [one])[0] for one in batch]


def test_nonsense_is_refused():
    for build in (lambda: GroupOverlong("best"), lambda: GroupOverlong(gate=2), lambda: Repetition(0)):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(ConfigError, match="tolerance"):
        NumericMatch(-1)


def test_budget_overlong_grows_in_the_last_part_of_the_budget():
    made = BudgetOverlong(0.5)
    spent = []
    for tokens in (2, 6, 8, 9):
        item = rollout("<think>" + "1" * tokens + "</think>8</s>")
        item.prompt.budget = 8
        spent.append(made.score([item])[0].value)
    assert spent == [0.0, -0.5, -1.0, -1.0]
    assert made.score([rollout("<think>1111</think>8</s>")])[0].value == 0.0  # no budget
    with pytest.raises(ConfigError, match="margin"):
        BudgetOverlong(0.0)


def test_a_reward_model_reads_prompt_and_answer(tmp_path):
    torch.manual_seed(0)
    model = DiscriminativeRewardModel(tiny_vlm(), 16)
    torch.nn.init.normal_(model.head.out.weight)
    model.save(tmp_path / "rm.safetensors")
    batch = [rollout("<think>12</think>8</s>"), rollout("<think>34</think>8</s>"), rollout("9</s>", group=1)]
    other = DiscriminativeRewardModel(tiny_vlm(seed=3), 16)
    made = RewardModel(other, str(tmp_path / "rm.safetensors"))
    values = [score.value for score in made.score(batch)]
    assert all(0 < value < 1 for value in values)
    assert values[0] == pytest.approx(values[1], abs=1e-6)  # the thinking is not read
    assert abs(values[0] - values[2]) > 1e-3
    alone = [RewardModel(model, batch_tokens=1).score([item])[0].value for item in batch]
    assert alone == pytest.approx(values, abs=1e-5)
    deep = [score.value for score in RewardModel(model, thinking=True, squash=False).score(batch)]
    assert abs(deep[0] - deep[1]) > 1e-3


def test_a_reward_model_reads_nothing_where_there_is_no_answer(monkeypatch):
    torch.manual_seed(0)
    model = DiscriminativeRewardModel(tiny_vlm(), 16)
    torch.nn.init.normal_(model.head.out.weight)
    answered = [rollout("<think>12</think>8</s>"), rollout("9</s>")]
    without = [rollout(text) for text in ("<think>12", "<think>1212</s>", "<think>12</think>8", "<think>1</think></s>")]
    mixed = [without[0], answered[0], *without[1:3], answered[1], without[3]]
    for options in ({}, {"thinking": True}):
        first, second = values(RewardModel(model, **options), answered)
        wanted = [0.0, first, 0.0, 0.0, second, 0.0]
        assert values(RewardModel(model, **options), mixed) == pytest.approx(wanted, abs=1e-6)
    raw = RewardModel(model, squash=False).score(mixed)
    assert [score.value is None for score in raw] == [True, False, True, True, False, True]
    assert "no answer" in raw[0].reason
    monkeypatch.setattr(model, "forward", None)
    assert values(RewardModel(model), without) == [0.0] * 4
