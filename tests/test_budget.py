"""A thinking budget holds for every row, leaves room for the answer, and is scored as it was drawn."""

import pytest
import torch
from tiny import VOCAB, prompt, tiny_tokenizer, tiny_vlm

from bluelm_lightning.data import chat
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling, ThinkingBudget, decode, generate, roll_out
from bluelm_lightning.generation.budget import ThinkingTokens, blocked_in, count_thinking, inside_thinking
from bluelm_lightning.rl.experience import pack_experience
from bluelm_lightning.rl.scoring import token_logprobs
from bluelm_lightning.types import Prompt, Rollout, Sample

TOKENS = ThinkingTokens.of(tiny_tokenizer())
LIMIT, RESERVE = 24, 6
CLOSING = "so"  # two tokens or one, whatever the tokenizer makes of it


def talkative(monkeypatch):
    """A model that draws almost evenly from eleven tokens, the three markers among them: every path is walked."""
    letters = tiny_tokenizer()("abcdefgh", add_special_tokens=False)["input_ids"][:8]
    mask = torch.ones(VOCAB, dtype=torch.bool)
    mask[[*letters, TOKENS.think, TOKENS.end_think, TOKENS.end]] = False
    monkeypatch.setattr(decode, "forbidden", lambda *args: mask)
    vlm = tiny_vlm()
    with torch.no_grad():
        vlm.decoder.output_weight.mul_(0.1)
    return vlm, mask


def rollouts(vlm, budgets, closing="", group_size=40, images=0, **sampling) -> list[Rollout]:
    prompts = [
        Prompt(Sample("s", "tiny"), prompt("what?" * (i + 1), images), True, tokens, seed=i)
        for i, tokens in enumerate(budgets)
    ]
    rule = ThinkingBudget(answer_reserve=RESERVE, closing_text=closing)
    drawn = Sampling(LIMIT, **{"temperature": 1.0, **sampling})
    return roll_out(vlm, prompts, tiny_tokenizer(), drawn, group_size, rule, batch_size=3)


@pytest.mark.parametrize("closing", ["", CLOSING])
@pytest.mark.parametrize("images", [0, 1])
def test_no_row_thinks_longer_than_its_budget_and_every_row_has_room_to_answer(monkeypatch, closing, images):
    vlm, _ = talkative(monkeypatch)
    got = rollouts(vlm, [0, 1, 2, 7, None], closing, images=images)
    thought = {tokens: [r.thinking_tokens for r in got if r.prompt.budget == tokens] for tokens in (0, 1, 2, 7, None)}
    assert not any(thought[0])
    assert not any(TOKENS.think in r.ids for r in got if r.prompt.budget == 0)
    assert max(thought[1]) == 1
    assert max(thought[2]) == 2
    assert max(thought[7]) == 7
    assert max(thought[None]) > 7
    for r in got:
        closes = (inside_thinking(r.ids, TOKENS) & (r.ids == TOKENS.end_think)).nonzero().flatten().tolist()
        if TOKENS.think in r.ids:
            assert LIMIT - 1 - closes[-1] >= RESERVE
            assert not inside_thinking(r.ids, TOKENS)[-1]  # closed


def test_the_closing_text_is_forced_before_the_end_of_thinking(monkeypatch):
    vlm, _ = talkative(monkeypatch)
    text = tiny_tokenizer()(CLOSING, add_special_tokens=False)["input_ids"]
    early = [r for r in rollouts(vlm, [7], CLOSING, group_size=300) if TOKENS.think in r.ids[:4] and r.forced.any()]
    got = [r for r in early if int((r.ids == TOKENS.think).sum()) == 1]
    assert len(got) > 5
    for r in got:
        assert r.ids[r.forced].tolist()[-len(text) - 1 :] == [*text, TOKENS.end_think]
        assert not r.logprobs[r.forced].any()
        assert (r.logprobs[~r.forced] < 0).all()
    short = [r for r in rollouts(vlm, [len(text) - 1], CLOSING) if r.forced.any()]
    assert short
    assert all(r.ids[r.forced].tolist() == [TOKENS.end_think] * int(r.forced.sum()) for r in short)


def test_nobody_ends_inside_the_thinking(monkeypatch):
    vlm, _ = talkative(monkeypatch)
    got = rollouts(vlm, [7, None], group_size=100)
    assert not any((inside_thinking(r.ids, TOKENS) & (r.ids == TOKENS.end)).any() for r in got)
    free = Sampling(LIMIT, temperature=1.0)
    prompts = [Prompt(Sample("s", "tiny"), prompt(), True)]
    unruled = roll_out(vlm, prompts, tiny_tokenizer(), free, 200)  # no rule at all
    assert any((inside_thinking(r.ids, TOKENS) & (r.ids == TOKENS.end)).any() for r in unruled)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"top_k": 4}, {"top_p": 0.6}, {"top_k": 6, "top_p": 0.8}]
)
def test_the_trainer_scores_the_distribution_that_was_drawn_from(monkeypatch, options):
    vlm, mask = talkative(monkeypatch)
    got = rollouts(vlm, [0, 3, None], CLOSING, group_size=8, images=1, **options)
    sampling = Sampling(LIMIT, **{"temperature": 1.0, **options})
    rule = ThinkingBudget(answer_reserve=RESERVE, closing_text=CLOSING)
    batch = pack_experience(got, torch.zeros(len(got)), rule, LIMIT, TOKENS, tiny_tokenizer().pad_token_id)
    hidden, places = vlm.eval()(batch).flatten(0, 1), (batch.labels.flatten() != -100).nonzero().flatten()
    ids, weight = batch.labels.flatten()[places], vlm.decoder.output_weight
    logprobs, _ = token_logprobs(hidden[places], weight, ids, batch.stops, sampling, mask, TOKENS)
    assert 0 < int((~batch.learned).sum()) < len(ids)
    gap = (logprobs - batch.behaviour)[batch.learned].abs().max()
    assert gap < 1e-5  # worst seen 1.2e-6


def test_a_rollout_does_not_depend_on_its_neighbours(monkeypatch):
    vlm, _ = talkative(monkeypatch)
    together = rollouts(vlm, [3, 5, None, 2], group_size=4)
    for number, tokens in enumerate([3, 5, None, 2]):
        one = Prompt(Sample("s", "tiny"), prompt("what?" * (number + 1)), True, tokens, seed=number)
        rule = ThinkingBudget(answer_reserve=RESERVE)
        alone = roll_out(vlm, [one], tiny_tokenizer(), Sampling(LIMIT, 1.0), 4, rule)
        assert [r.ids.tolist() for r in alone] == [r.ids.tolist() for r in together if r.group == number]


def test_a_group_shares_one_prefill(monkeypatch):
    vlm, seen = tiny_vlm(), []
    encode = vlm.encode_images
    monkeypatch.setattr(vlm, "encode_images", lambda tiles: seen.append(len(tiles)) or encode(tiles))
    prompts = [Prompt(Sample("s", "tiny"), prompt("a", images=2), True, seed=n) for n in range(3)]
    got = roll_out(vlm, prompts, tiny_tokenizer(), Sampling(4, 1.0), group_size=8)
    assert len(got) == 24
    assert seen == [6]


def test_per_row_budgets_in_one_greedy_batch(monkeypatch):
    vlm, _ = talkative(monkeypatch)
    budgets = [ThinkingBudget(n, RESERVE) for n in (0, 2, None)]
    got = generate(vlm, [prompt()] * 3, tiny_tokenizer(), LIMIT, temperature=1.0, budget=budgets)
    counts = [count_thinking(torch.tensor(g.ids), TOKENS) for g in got]
    assert counts[0] == 0
    assert counts[1] <= 2
    with pytest.raises(ConfigError, match="7 new tokens leave no room for an answer reserve of 6"):
        generate(vlm, [prompt()], tiny_tokenizer(), 7, budget=budgets[1])


def test_inside_thinking_by_hand():
    t, e, x = TOKENS.think, TOKENS.end_think, 50
    ids = torch.tensor([x, t, x, t, x, e, x, t, e, x])
    assert inside_thinking(ids, TOKENS).int().tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 0]
    assert count_thinking(ids, TOKENS) == 3  # x, the second <think>, x
    assert count_thinking(ids[:0], TOKENS) == 0
    stops = blocked_in(ids, ThinkingBudget(5, answer_reserve=2), 8, TOKENS)
    assert stops[:, 0].int().tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 0]
    assert stops[:, 1].int().tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]  # 5 + 2 markers is over 8 - 2
    assert chat.THINK == "<think>"


@pytest.mark.parametrize("wrong", [{"max_thinking_tokens": -1}, {"answer_reserve": 0}])
def test_a_budget_of_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match="0 or more"):
        ThinkingBudget(**wrong)
