"""Batched generation writes what a model called again on the whole text would write."""

import pytest
import torch
from tiny import VOCAB, prompt, tiny_tokenizer, tiny_vlm

from bluelm_lightning.data import chat
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import DataError
from bluelm_lightning.generation import decode, generate
from bluelm_lightning.types import Encoded

ALLOWED_SPECIAL = (chat.THINK, chat.END_THINK, chat.END)
CASES = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "window of 5": ("mistral", {"sliding_window": 5}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}


def allowed_ids() -> set[int]:
    """Ids that may be written, derived anew: all of the tokenizer but the special ones that only a user may write."""
    tokenizer = tiny_tokenizer()
    special = set(tokenizer.convert_tokens_to_ids(chat.SPECIAL_TOKENS))
    return set(range(len(tokenizer))) - special | set(tokenizer.convert_tokens_to_ids(list(ALLOWED_SPECIAL)))


def lively_vlm(architecture="llama", config=None, choices=20):
    """Large random weights, so that each state writes another token; few choices, so that some rows end early."""
    vlm = tiny_vlm(architecture, seed=4, config={"tie_word_embeddings": False, **(config or {})})
    with torch.no_grad():
        for p in vlm.parameters():
            if p.ndim > 1:
                p.normal_(std=0.4)
        rows = torch.tensor(sorted(allowed_ids())[choices:])
        vlm.decoder.output_weight[rows] = 0
    return vlm


def prompts() -> list[Encoded]:
    long = "how many digits are there in all of this?"
    texts = [("what is it?", 0), ("a", 1), (long, 2), ("", 0), ("no", 3), ("x", 0)]
    return [prompt(text, images) for text, images in texts]


def naive(vlm, first: Encoded, limit: int) -> list[int]:
    """One prompt, no cache: the whole text through the model for each token."""
    allowed, eos, out = sorted(allowed_ids()), tiny_tokenizer().eos_token_id, []
    for _ in range(limit):
        ids = torch.cat([first.ids, torch.tensor(out, dtype=torch.long)])
        whole = Encoded("p", "s", ids, torch.full_like(ids, -100), first.tiles, first.image_positions)
        with torch.no_grad():
            logits = (vlm(pack([[whole]], len(ids), 0)) @ vlm.decoder.output_weight.T)[0, -1]
        out.append(allowed[int(logits[allowed].argmax())])
        if out[-1] == eos:
            break
    return out


@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_the_naive_way(case):
    architecture, config = CASES[case]
    vlm = lively_vlm(architecture, config).eval()
    given = prompts()
    got = generate(vlm, given, tiny_tokenizer(), max_new_tokens=24)
    wanted = [naive(vlm, p, 24) for p in given]
    eos = tiny_tokenizer().eos_token_id
    for mine, ids in zip(got, wanted):
        assert mine.ids == [token for token in ids if token != eos]
        assert mine.finished == (ids[-1] == eos)
        assert mine.num_tokens == len(mine.ids)
        assert mine.text == tiny_tokenizer().decode(mine.ids)
    if case == "llama":  # or the rows that leave early, and those that stay, are not tested
        assert 1 < sum(g.finished for g in got) < len(got)
        assert len({g.num_tokens for g in got if g.finished}) > 1


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_neighbours_and_order_do_not_change_a_greedy_answer(batch_size):
    vlm, given = lively_vlm(), prompts()
    wanted = generate(vlm, given, tiny_tokenizer(), max_new_tokens=16)
    assert generate(vlm, given, tiny_tokenizer(), max_new_tokens=16, batch_size=batch_size) == wanted
    assert generate(vlm, given[::-1], tiny_tokenizer(), max_new_tokens=16, batch_size=batch_size) == wanted[::-1]


def test_sampling_is_repeated_by_its_seed():
    vlm, given = tiny_vlm(), prompts()
    runs = [
        [g.ids for g in generate(vlm, given, tiny_tokenizer(), max_new_tokens=8, temperature=1.0, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len({tuple(ids) for ids in runs[0]}) == len(given)


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_is_not():
    vlm, given = lively_vlm(), prompts()
    greedy = generate(vlm, given, tiny_tokenizer(), max_new_tokens=8)
    assert generate(vlm, given, tiny_tokenizer(), max_new_tokens=8, temperature=1e-4) == greedy
    assert generate(vlm, given, tiny_tokenizer(), max_new_tokens=8, temperature=10.0) != greedy


def test_sampling_follows_the_softmax():
    vlm = lively_vlm().eval()
    one = prompt()
    hidden = vlm(pack([[one]], len(one), 0))[0, -1]
    wanted = (hidden @ vlm.decoder.output_weight.T / 0.7).detach()
    mask = torch.ones(VOCAB, dtype=torch.bool)
    mask[sorted(allowed_ids())] = False
    wanted = wanted.masked_fill(mask, float("-inf")).softmax(-1)
    got = generate(vlm, [one] * 4000, tiny_tokenizer(), max_new_tokens=1, temperature=0.7, batch_size=4000)
    eos = tiny_tokenizer().eos_token_id
    drawn = torch.tensor([g.ids[0] if g.ids else eos for g in got])
    shares = torch.bincount(drawn, minlength=VOCAB) / len(drawn)
    assert 0.3 < wanted.max() < 0.9
    assert (shares - wanted).abs().max() < 0.025  # three standard errors of a share of one half; worst seen 0.0075


def test_forbidden_ids_are_never_written():
    vlm = tiny_vlm()
    with torch.no_grad():
        vlm.decoder.output_weight.mul_(0.01)  # nearly uniform over the vocabulary
    got = generate(vlm, [prompt(str(n)) for n in range(40)], tiny_tokenizer(), max_new_tokens=60, temperature=5.0)
    drawn = {token for g in got for token in g.ids}
    assert drawn <= allowed_ids()
    assert len(drawn) > 250
    assert set(tiny_tokenizer().convert_tokens_to_ids([chat.THINK, chat.END_THINK])) <= drawn
    assert any(g.finished for g in got)


def write(monkeypatch, text: str, limit: int = 100):
    """Generation by a model that writes exactly this text (and goes on with "a")."""
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    script = iter(ids + tiny_tokenizer()("a" * 200, add_special_tokens=False)["input_ids"])
    free = (torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    monkeypatch.setattr(decode._Chooser, "__call__", lambda *args: (torch.tensor([next(script)]), *free))
    return generate(tiny_vlm(), [prompt()], tiny_tokenizer(), max_new_tokens=min(limit, 100))[0]


def test_thinking_and_answer(monkeypatch):
    got = write(monkeypatch, "<think>3+5=8</think>8</s>")
    assert (got.thinking, got.answer, got.finished, got.text) == ("3+5=8", "8", True, "<think>3+5=8</think>8")
    got = write(monkeypatch, "yes</s>")
    assert (got.thinking, got.answer, got.finished) == (None, "yes", True)
    got = write(monkeypatch, "</s>")
    assert (got.thinking, got.answer, got.num_tokens, got.ids) == (None, "", 0, [])


def test_an_unfinished_text_has_no_answer(monkeypatch):
    got = write(monkeypatch, "yes", limit=5)
    assert (got.answer, got.finished, got.num_tokens) == (None, False, 5)
    got = write(monkeypatch, "<think>3+5=8</think>8", limit=12)
    assert (got.thinking, got.answer, got.finished) == ("3+5=8", None, False)


def test_thinking_that_is_never_closed_has_no_answer(monkeypatch):
    got = write(monkeypatch, "<think>3+5=8</s>")
    assert (got.thinking, got.answer, got.finished) == ("3+5=8", None, True)


def test_the_last_token_may_be_the_end(monkeypatch):
    length = len(tiny_tokenizer()("yes</s>", add_special_tokens=False)["input_ids"])
    assert write(monkeypatch, "yes</s>", limit=length).finished
    assert not write(monkeypatch, "yes</s>", limit=length - 1).finished


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_random_states_are_left_alone(fails):
    vlm = tiny_vlm(config={"attention_dropout": 0.5}).train()
    vlm.vision.eval()  # a frozen tower on its own
    given = prompts()
    if fails:
        given[1].image_positions = given[1].image_positions[:-1]
    modes = {name: module.training for name, module in vlm.named_modules()}
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(DataError):
            generate(vlm, given, tiny_tokenizer(), max_new_tokens=3, temperature=1.0)
    else:
        first = generate(vlm, given, tiny_tokenizer(), max_new_tokens=3)
        assert generate(vlm, given, tiny_tokenizer(), max_new_tokens=3) == first  # no dropout while generating
    assert {name: module.training for name, module in vlm.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in vlm.parameters())


def test_no_prompts_and_no_room():
    assert generate(tiny_vlm(), [], tiny_tokenizer()) == []
    got = generate(tiny_vlm(), prompts(), tiny_tokenizer(), max_new_tokens=0)
    assert [(g.ids, g.answer, g.finished) for g in got] == [([], None, False)] * len(got)
