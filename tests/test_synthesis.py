"""Synthesis: which replies are kept and why, other wordings, the engine in this process, settings that are wrong."""

from pathlib import Path

import pytest
import yaml
from cli_project import fit, write_project
from solver import settings, sums
from tiny import question

from bluelm_lightning.cli.data import main
from bluelm_lightning.cli.settings import read_settings
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling, roll_out
from bluelm_lightning.rl.rewards import steps_hold
from bluelm_lightning.synthesis import LocalEngine, Rewriter, TemplateRewriter, TraceEngine
from bluelm_lightning.synthesis.engines import Failed
from bluelm_lightning.synthesis.plan import Band, Questions, SynthesisPlan
from bluelm_lightning.synthesis.rewrite import reworded, wordings
from bluelm_lightning.synthesis.run import synthesize
from bluelm_lightning.synthesis.select import Reply, choose, vote_of
from bluelm_lightning.types import Generation, Prompt


def said(answer, right=None, thinking="t", tokens=10, finished=True):
    return Reply(thinking, answer, tokens, finished, {} if right is None else {"rule": float(right)}, right is not None)


# ---------------------------------------------------------------- what is kept
def test_each_reply_is_kept_or_dropped_for_one_reason():
    replies = [
        said("7", True, "a"), said("8", False), said("7", True, "a"), said("7", True, "b"), said("7", True, "c", 50),
        said(None, False, finished=False), said("7", True, None), said("7", True, "d", 200), said("7", True, "e"),
        said("<think>7", True, "f"),
    ]  # fmt: skip
    bands = [Band("short", most=20, keep=2), Band("long", least=40, most=100)]
    chosen = choose(replies, thinking=True, agreement=0.0, bands=bands)
    assert chosen.kept == [(0, "short"), (3, "short"), (4, "long")]
    wanted = {"wrong": 1, "duplicate": 1, "unfinished": 1, "form": 2, "length": 1, "surplus": 1}
    assert dict(chosen.dropped) == wanted
    assert len(chosen.kept) + chosen.dropped.total() == len(replies)


@pytest.mark.parametrize(
    ("agreement", "kept", "reason"),
    [(0.0, [], "unverified"), (0.5, [0, 2], "outvoted"), (0.7, [], "disagreement")],
)
def test_where_nothing_can_verify_the_vote_decides(agreement, kept, reason):
    replies = [said("Blue.", None, "a"), said("red", None, "b"), said("blue", None, "c")]
    vote = vote_of(replies)
    assert (vote.answer, vote.votes, vote.share) == ("blue", 2, pytest.approx(2 / 3))
    chosen = choose(replies, True, agreement, [Band("any", keep=5)])
    assert [place for place, _ in chosen.kept] == kept
    assert reason in chosen.dropped


def test_a_right_answer_that_the_vote_disowns_is_not_kept():
    replies = [said("7", True, "lucky"), said("9", False), said("9", False)]
    assert choose(replies, True, 0.0, [Band("any")]).kept == [(0, "any")]
    assert choose(replies, True, 0.3, [Band("any")]).dropped == {"wrong": 2, "outvoted": 1}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("3 5 2: 3+5=8 8+2=10", True),
        ("3+5=8 8+2=11", False),
        ("12-30=-18 -18+5=-13 -2*-3=6", True),
        ("-18+5=13", False),
        ("1+2+3=6 so 4 + 4 = 9", False),
        ("1+2+3=7", True),  # chains are not looked at
        ("no sums", True),
    ],
)
def test_steps(text, holds):
    assert steps_hold(text) == holds


# ---------------------------------------------------------------- other words
def test_other_wordings_keep_numbers_and_pictures():
    samples = [question("what is 3+4?", images=2, id="a"), question("what is 12?", id="b")]
    new = wordings(samples, TemplateRewriter(["please: {question}"]), [1, 2])
    assert new == ["please: what is 3+4?", "please: what is 12?"]
    made = reworded(samples[0], new[0])
    assert made.messages[0]["content"] == "<image><image>please: what is 3+4?"
    assert samples[0].messages[0]["content"] == "<image><image>what is 3+4?"

    class Careless(Rewriter):
        def rewrite(self, questions, seeds):
            return ["three and 4?", "<image>12"]

    assert wordings(samples, Careless(), [1, 2]) == [None, None]

    class Down(Rewriter):
        def rewrite(self, questions, seeds):
            return [None, Failed("the server is down")]

    failed = wordings(samples, Down(), [1, 2])
    assert failed == [Failed("the rewriter gave no text"), Failed("the server is down")]
    with pytest.raises(ConfigError, match="templates"):
        TemplateRewriter(["no slot"])


# ---------------------------------------------------------------- the engine in this process
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("run"))
    assert fit(folder, f"--run_dir={folder}/run", "--trainer.max_steps=1") == 0
    return folder


def test_the_local_engine_gives_the_models_own_rollouts(run):
    engine = LocalEngine(str(run / "run"), batch_size=2)
    samples = [question(f"what is {n}?", images=n % 2) for n in range(3)]
    sampling, seeds = Sampling(6, temperature=1.0), [11, 5, 7]
    written = engine.write(samples, True, sampling, 2, seeds)
    vlm, encoder = engine._model()
    prompts = [Prompt(s, encoder.prompt(s, True), True, seed=n) for s, n in zip(samples, seeds)]
    wanted = [made.generation.text for made in roll_out(vlm, prompts, encoder.tokenizer, sampling, 2)]
    assert [made.text for replies in written for made in replies] == wanted
    assert len(set(wanted)) == 6
    assert engine.write(samples[2:], True, sampling, 2, seeds[2:])[0][1].text == wanted[5], "whoever is asked beside it"
    assert len(engine.provenance()["weights"]) == 16
    with pytest.raises(ConfigError, match=r"nowhere.*does not exist"):
        LocalEngine("nowhere").provenance()


# ---------------------------------------------------------------- whole runs
class Knowing(TraceEngine):
    """Says the seed, so that a reply can be traced to its question."""

    def write(self, samples, thinking, sampling, copies, seeds):
        return [[Generation([], "", "t", str(seed), 1, True)] for seed in seeds]

    def provenance(self):
        return {"engine": "test", "model": "none"}


def test_sources_of_one_name_are_not_mixed_up(tmp_path):
    sums(tmp_path / "sums")
    twice = [Questions(str(tmp_path / "sums"), 3), Questions(str(tmp_path / "sums"), 3)]
    synthesize(SynthesisPlan(twice, Knowing(), str(tmp_path / "out"), agreement=1.0, samples=1))
    source = ShardSource(tmp_path / "out" / "shards")
    kept = [source[n] for n in range(len(source))]
    assert len({sample.id for sample in kept}) == 6
    assert all(int(sample.messages[-1]["content"]) == sample.meta["synthesis"]["seed"] for sample in kept)


def test_the_packaged_example_is_built():
    plan = read_settings(SynthesisPlan, "data/synthesize.yaml")
    assert isinstance(plan.engine, LocalEngine)
    assert [reward.verdict for reward in plan.verifiers.values()] == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampels": 3}, "sampels: unknown key of SynthesisPlan; did you mean samples?"),
        ({"verifiers": {"steps": {"class_path": "Steps"}}}, "verifiers: none judges the answer"),
        ({"verifiers": {"a": {"class_path": "ExactMach"}}}, "did you mean ExactMatch?"),
        ({"temperature": 0.0}, "temperature: 4 greedy samples are all the same"),
        ({"agreement": 2.0}, "agreement: 2.0 is not between 0 and 1"),
        ({"questions": [{"path": "nowhere"}]}, "nowhere"),
        ({"questions": [{"path": "nowhere", "count": 0}]}, "questions.count: 0 is below 1"),
        ({"questions": [{"path": "nowhere", "count": -5}]}, "questions.count: -5 is below 1"),
        ({"bands": [{"name": "a", "keep": -1}]}, "bands: band 'a' keeps -1"),
        ({"bands": [{"name": "a", "least": 9, "most": 2}]}, "bands: band 'a' from 9 to 2 holds no length"),
        ({"bands": [{"name": "a", "most": 2}, {"name": "a", "least": 3}]}, "bands: two are called 'a'"),
        ({"engine": {"class_path": "EndpointEngine", "init_args": {"url": "host", "model": "m"}}}, "no http address"),
        ({"engine": {"class_path": "os.system"}}, "may not reach os"),
        ({"engine": {}}, "engine: names no class; write class_path, and a TraceEngine behind it"),
        ({"engine": {"init_args": [1]}}, "engine.init_args: [1] is no mapping; write argument: value (in "),
        ({"rewriting": {"by": {}}}, "rewriting.by: names no class; write class_path, and a Rewriter behind it"),
        ({"verifiers": {"a": {}}}, "verifiers.a: names no class; write class_path, and a Reward behind it"),
        ({3: 4}, "3: is no text, and so no key in "),
    ],
)
def test_bad_settings_end_with_one_line(tmp_path, change, message, capsys):
    file = settings(tmp_path, "http://localhost:9", "bad")
    Path(file).write_text(yaml.safe_dump({**yaml.safe_load(Path(file).read_text()), **change}, sort_keys=False))
    assert main(["synthesize", file]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
