"""The recipe's parts: text, needles, probes, and runs that are kept."""

import re

import pytest
import torch
from tiny import question, tiny_encoder, tiny_vlm

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.packing import pack
from bluelm_lightning.data.tokenizer import load_tokenizer, train_tokenizer
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.recipe.__main__ import needles_found
from bluelm_lightning.recipe.corpus import docstrings
from bluelm_lightning.recipe.needles import KINDS, WORDS, needle
from bluelm_lightning.recipe.probes import document_scores, probe
from bluelm_lightning.recipe.runs import Runs, literal
from bluelm_lightning.types import IGNORE, ImageSpec

HAYSTACK = ["one two three four five six seven", "eight nine ten"]


def words(text: str) -> int:
    return len(text.split())


# ---------------------------------------------------------------- data
def test_docstrings_of_a_module_are_in_one_split():
    held_out = {sample.id.split(":")[0] for _, sample in zip(range(400), docstrings("test"))}
    training = {sample.id.split(":")[0] for _, sample in zip(range(400), docstrings("train"))}
    assert held_out
    assert training
    assert not held_out & training


def test_every_answer_of_a_needle_stands_in_the_text_after_its_kind():
    sample = needle(HAYSTACK, 120, words, seed=3, questions=3)
    asked = [turn["content"] for turn in sample.messages[::2]]
    told = dict(re.findall(r"the (\w+) is (\w+)\.", asked[0]))
    kinds = [re.findall(r"the (\w+)\?", text)[0] for text in asked]
    assert set(told) == set(KINDS)
    assert len(set(kinds)) == 3
    assert [turn["content"] for turn in sample.messages[1::2]] == [f" {told[kind]}" for kind in kinds]
    assert sample.answer == told[kinds[-1]]


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_needle_asked_first_stands_at_its_depth(depth):
    sample = needle(HAYSTACK, 300, words, seed=1, depth=depth)
    text = sample.messages[0]["content"]
    word = sample.messages[1]["content"]
    assert text.index(f"is{word}.") / len(text) == pytest.approx(depth, abs=0.12)


@pytest.mark.parametrize("tokens", [80, 400])
def test_a_needle_is_as_long_as_asked(tokens):
    sample = needle(HAYSTACK, tokens, words, seed=2)
    assert tokens - 12 <= sum(words(turn["content"]) for turn in sample.messages) <= tokens


def test_the_text_around_needles_holds_no_word_of_theirs():
    sample = needle(["one otter, two (Heron) amber-like three"], 200, words, seed=4)
    text = re.sub(r"the \w+ is \w+\.", "", sample.messages[0]["content"].split("\n")[0])
    assert {word.lower() for word in text.split()} == {"one", "two", "(heron)", "three"}  # a capital is another token


def test_an_answer_is_one_token_the_very_one_of_the_text(tmp_path):
    tokenizer = train_tokenizer(["one two three"] * 9, 300, tmp_path, WORDS)
    sample = needle(HAYSTACK, 60, lambda text: len(tokenizer(text).input_ids), seed=5)
    for one in (tokenizer, load_tokenizer(tmp_path)):
        doc = Encoder(one, ImageSpec(1, 1))(sample)
        first = int((doc.labels != IGNORE).nonzero()[0])
        assert (doc.labels != IGNORE).sum() == 2  # the word, and the end
        assert (doc.ids == doc.labels[first]).sum() == 2  # in the text, and as the answer


@pytest.mark.parametrize("questions", [0, 5])
def test_more_questions_than_needles_are_refused(questions):
    with pytest.raises(ConfigError, match=f"{questions} questions asked, a text hides 1 to 4 words"):
        needle(HAYSTACK, 120, words, seed=0, questions=questions)


# ---------------------------------------------------------------- what is said
def test_needles_are_told_before_and_after_the_long_context_stage():
    def row(stage, short, long):
        scores = {f"needle_{n}": {"exact": share} for n, share in ((256, short), (2048, long))}
        return {"stage": stage, "text": {"loss": 1.0}, **scores}

    rows = [row("joint", 0.1, 0.0), row("reasoning", 0.9, 0.1), row("long_context", 0.95, 0.8), row("long_sft", 0, 0)]
    assert needles_found(rows).endswith(": 256 tokens 90 -> 95 %, 2048 tokens 10 -> 80 %")


# ---------------------------------------------------------------- probes
def test_a_probe_scores_each_document_as_it_would_be_alone():
    vlm, encoder = tiny_vlm(), tiny_encoder()
    samples = [question(f"what is {n}?", "a red circle" * (n + 1), images=n % 2, id="same") for n in range(4)]
    losses, right = document_scores(vlm, encoder, samples)
    for sample, (loss, count), hit in zip(samples, losses, right):
        doc = encoder(sample)
        logits = vlm.eval()(pack([[doc]], len(doc), 0))[0] @ vlm.decoder.output_weight.T
        kept = doc.labels != IGNORE
        alone = torch.nn.functional.cross_entropy(logits[kept], doc.labels[kept], reduction="sum")
        assert loss == pytest.approx(float(alone), rel=1e-5)
        assert count == int(kept.sum())
        assert hit == int((logits[kept].argmax(-1) == doc.labels[kept]).sum())
    assert probe(vlm, encoder, samples).count == 4


# ---------------------------------------------------------------- runs
class Recorded(Runs):
    """Notes the commands, and leaves what a run leaves."""

    def __init__(self, root, data_key="d", fails=()):
        super().__init__(root, data_key)
        self.done, self.fails = [], fails

    def _run(self, name, arguments):
        self.done.append((name, arguments))
        (self.root / name / "checkpoints").mkdir(parents=True, exist_ok=True)
        (self.root / name / "checkpoints" / "last.ckpt").touch()
        if name in self.fails:
            raise ConfigError("killed")


def test_braces_that_are_doubled_stand_for_themselves(tmp_path):
    runs = Recorded(tmp_path)
    runs.fit("a", "tiny/text.yaml")
    runs.fit(
        "b", "tiny/joint.yaml", options=[literal('--name={epoch} {a} {"b": {"c": 1}}'), "--from={a}", "--x={{{a}}}"]
    )
    assert runs.done[-1][1][-3:] == [
        '--name={epoch} {a} {"b": {"c": 1}}',
        f"--from={tmp_path}/a",
        f"--x={{{tmp_path}/a}}",
    ]


def chain(runs: Runs, option: str = "--data.seed=0") -> None:
    runs.fit("a", "tiny/text.yaml", options=[option])
    runs.fit("b", "tiny/joint.yaml", ["decoder={a}"])
    runs.fit("other", "tiny/tower.yaml")


def names(runs: Recorded) -> list[str]:
    return [name for name, _ in runs.done]


def test_a_kill_before_the_old_run_is_gone_leaves_nothing_that_looks_begun(tmp_path, monkeypatch):
    Recorded(tmp_path).fit("a", "tiny/text.yaml", options=["--lr=1"])

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            Recorded(tmp_path).fit("a", "tiny/text.yaml", options=["--lr=2"])
    again = Recorded(tmp_path)
    again.fit("a", "tiny/text.yaml", options=["--lr=2"])
    assert names(again) == ["a"]
    assert not any(option.startswith("--ckpt_path") for option in again.done[0][1])


def test_a_second_call_runs_nothing(tmp_path):
    chain(Recorded(tmp_path))
    again = Recorded(tmp_path)
    chain(again)
    assert names(again) == []


def test_a_change_runs_what_depends_on_it_again(tmp_path):
    chain(Recorded(tmp_path))
    changed, other_data = Recorded(tmp_path), Recorded(tmp_path, "other data")
    chain(changed, "--data.seed=1")
    assert names(changed) == ["a", "b"]
    chain(other_data)
    assert names(other_data) == ["a", "b", "other"]


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="killed"):
        chain(Recorded(tmp_path, fails=["b"]))
    again = Recorded(tmp_path)
    chain(again)
    assert names(again) == ["b", "other"]
    assert f"--ckpt_path={tmp_path}/b/checkpoints/last.ckpt" in again.done[0][1]
    assert not any("--init_from" in text for text in again.done[0][1])


def test_parents_are_handed_over_by_folder(tmp_path):
    runs = Recorded(tmp_path)
    chain(runs)
    assert f"--init_from=decoder={tmp_path}/a/checkpoints/last.ckpt" in runs.done[1][1]


def test_a_run_that_fails_says_why_and_is_not_done(tmp_path):
    runs = Runs(tmp_path, "d")
    with pytest.raises(ConfigError, match=r"the run a ended with exit code 2: .*typo.*a\.log"):
        runs.fit("a", "tiny/text.yaml", options=["--data.typo=1"])
    assert not (tmp_path / "a" / "done.key").exists()
