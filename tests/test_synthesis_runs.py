"""What a run of synthesis leaves when something fails: finished shards, replies that were paid for, and the reason."""

import json
import re
import threading

import pytest
from endpoints import chat_server
from solver import QUESTIONS, settings, shards, solver, sums

from bluelm_lightning.cli.data import main
from bluelm_lightning.data.shard_swap import in_place_of
from bluelm_lightning.data.shards import ShardSource, ShardWriter
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.rl.rewards import Reward
from bluelm_lightning.synthesis import EndpointEngine, TraceEngine
from bluelm_lightning.synthesis.plan import Questions, SynthesisPlan
from bluelm_lightning.synthesis.run import synthesize
from bluelm_lightning.types import Generation, Score


def report_of(out):
    return json.loads((out / "report.json").read_text())


def numbers_of(body):
    return tuple(map(int, re.findall(r"\d+", body["messages"][-1]["content"])[:2]))


def run(folder, url, out="out", **change):
    return main(["synthesize", settings(folder, url, out, **{"samples": 2, **change})])


# ---------------------------------------------------------------- finished shards
def test_a_run_that_fails_leaves_the_shards_before_it(tmp_path, capsys):
    sums(tmp_path / "sums")
    broken = threading.Event()
    with chat_server(lambda number, body: 500 if broken.is_set() else solver(number, body)) as (url, _):
        assert run(tmp_path, url) == 0
        (tmp_path / "out" / "shards" / "NOTES").write_text("mine")
        before, report = shards(tmp_path / "out"), report_of(tmp_path / "out")
        assert re.search(r"^\d+ tokens in \d+ s: \d+ tokens a kept trace$", capsys.readouterr().out, re.M)
        assert run(tmp_path, url, bands=[{"name": "[/b]", "least": 9999}]) == 2
        told = capsys.readouterr()
        assert re.search(r"no trace was kept: \d+ length, \d+ wrong; see .*nothing_kept.json", told.err)
        assert "wrong" in told.out, "the report is printed"
        assert re.search(r"^\d+ tokens in \d+ s$", told.out, re.M)
        broken.set()
        assert run(tmp_path, url, samples=3) == 2
        assert shards(tmp_path / "out") == before
        assert report_of(tmp_path / "out") == report
        broken.clear()
        assert run(tmp_path, url, bands=[{"name": "[/b]", "least": 1}]) == 0
    assert "[/b]" in capsys.readouterr().out
    assert (tmp_path / "out" / "shards" / "NOTES").read_text() == "mine"
    assert not (tmp_path / "out" / "nothing_kept.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def full(folder):
    sums(folder)
    raise OSError("full")


def fail(folder):
    with pytest.raises(OSError, match="full"), in_place_of(folder) as new:
        full(new)


def test_shards_take_the_place_of_others_when_they_are_whole(tmp_path):
    folder = sums(tmp_path / "shards")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fail(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    folder.rename(tmp_path / ".shards.old")  # killed between the two renames
    sums(tmp_path / ".shards.new")
    fail(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with in_place_of(folder) as new, ShardWriter(new) as writer:
        writer.write(ShardSource(folder)[3])
        assert len(ShardSource(folder)) == QUESTIONS
    assert len(ShardSource(folder)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    (folder / "other.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds other.tar, written by others"), in_place_of(folder):
        pass


# ---------------------------------------------------------------- replies that were paid for
def test_a_question_that_is_refused_is_named_and_the_rest_goes_on(tmp_path, capsys):
    sums(tmp_path / "sums")

    def short(number, body):
        return (400, {}, b"9000 tokens are too many") if numbers_of(body)[0] == 5 else solver(number, body)

    with chat_server(short) as (url, seen):
        assert run(tmp_path, url) == 0
        assert "1 questions were not answered" in capsys.readouterr().out
        report = report_of(tmp_path / "out")
        assert report["cost"]["failed_questions"] == 1
        assert report["failed"] == {"0/sums/5": f"{url}: refused with 400: '9000 tokens are too many'"}
        assert report["tasks"]["sum"]["questions"] == QUESTIONS - 1
        first = len(seen)
        assert run(tmp_path, url) == 0
        assert [numbers_of(body)[0] for body in seen[first:]] == [5, 5]
    with chat_server(lambda number, body: (413, {}, b"too large")) as (url, _):
        assert run(tmp_path, url, "none") == 2
    assert "refused with 413: 'too large'" in capsys.readouterr().err


def test_replies_beside_a_failed_one_are_kept(tmp_path, capsys):
    sums(tmp_path / "sums")
    broken, lock, bad = threading.Event(), threading.Lock(), {}

    def half(number, body):  # one copy of each question fails
        with lock:
            fails = bad.setdefault(numbers_of(body), body["seed"]) == body["seed"]
        return 500 if fails and broken.is_set() else solver(number, body)

    with chat_server(half) as (url, seen):
        broken.set()
        asking = {"retries": 0, "concurrency": 1, "breaker": 1000}
        engine = {"class_path": "EndpointEngine", "init_args": {"url": url, "model": "m", "asking": asking}}
        assert run(tmp_path, url, engine=engine, batch=QUESTIONS) == 2
        assert "the last error: " + f"{url}: refused with 500" in capsys.readouterr().err
        broken.clear()
        first = len(seen)
        assert run(tmp_path, url, batch=QUESTIONS) == 0
        assert len(seen) - first == QUESTIONS, "only what is missing is asked for"
        assert run(tmp_path, url, "other", batch=QUESTIONS) == 0
    assert shards(tmp_path / "out") == shards(tmp_path / "other")
    assert report_of(tmp_path / "out")["cost"]["tokens"] == report_of(tmp_path / "other")["cost"]["tokens"]


def test_a_refusal_in_the_middle_keeps_what_came_before(tmp_path, capsys):
    sums(tmp_path / "sums")
    with chat_server(lambda number, body: 403 if number > 5 else solver(number, body)) as (url, _):
        assert run(tmp_path, url) == 2
    assert "refused with 403: ''; correct the request" in capsys.readouterr().err
    held = json.loads((tmp_path / "out" / "answers" / "000000.json").read_text())
    assert 2 * len(held["replies"]) + sum(map(len, held["partial"].values())) >= 4


def test_a_damaged_file_of_answers_is_named(tmp_path, capsys):
    sums(tmp_path / "sums")
    with chat_server(solver) as (url, _):
        assert run(tmp_path, url) == 0
        for text in ("", "[]"):
            (tmp_path / "out" / "answers" / "000002.json").write_text(text)
            assert run(tmp_path, url) == 2
            error = capsys.readouterr().err
            assert "answers/000002.json: " in error
            assert "delete it, and its questions are asked again" in error


class Forgetful(TraceEngine):
    """Gives no second reply in the first call, and says which numbers it was asked for."""

    def __init__(self):
        self.calls = 0

    def write(self, samples, thinking, sampling, copies, seeds):
        self.calls += 1
        whole = [[Generation([], "", f"t{n}", str(seed), 1, True) for n in range(copies)] for seed in seeds]
        return whole if self.calls > 1 else [[first, *([None] * (copies - 1))] for first, *_ in whole]

    def provenance(self):
        return {"engine": "test", "model": "none"}


def test_an_engine_of_ones_own_may_fail_too(tmp_path):
    questions, engine = [Questions(str(sums(tmp_path / "sums")), 3)], Forgetful()
    plan = SynthesisPlan(questions, engine, str(tmp_path / "out"), agreement=1.0, samples=2)
    with pytest.raises(
        DataError, match=r"no reply to 3 questions, .* the last error: the engine gave no reply; the same"
    ):
        synthesize(plan)
    assert synthesize(plan)["tasks"]["sum"]["replies"] == 6
    assert engine.calls == 2


class Broken(Reward):
    """A verifier that is down at first."""

    verdict, calls = True, 0

    def score(self, rollouts):
        Broken.calls += 1
        if Broken.calls == 1:
            raise OSError("the verifier is down")
        return [Score(1.0) for _ in rollouts]


def test_replies_outlive_a_verifier_that_fails(tmp_path):
    with chat_server(solver) as (url, seen):
        questions, engine = [Questions(str(sums(tmp_path / "sums")), 3)], EndpointEngine(url, "m")
        plan = SynthesisPlan(questions, engine, str(tmp_path / "out"), {"it": Broken()}, samples=2)
        with pytest.raises((ValueError, OSError), match="the verifier is down"):
            synthesize(plan)
        assert synthesize(plan)["tasks"]["sum"]["kept"] == 3
        assert len(seen) == 6


# ---------------------------------------------------------------- other wordings
def test_wordings_that_failed_are_asked_for_again(tmp_path, capsys):
    sums(tmp_path / "sums")
    broken = threading.Event()

    def both(number, body):
        if not body["messages"][-1]["content"].startswith("again"):
            return solver(number, body)
        a, b = numbers_of(body)
        return 500 if broken.is_set() else f"how much is {a}+{b} now" if a != 6 else "some sum"

    with chat_server(both) as (url, seen):
        engine = {"url": url, "model": "m", "pause_s": 0.0, "asking": {"retries": 0, "pause_s": 0.01}}
        by = {"engine": {"class_path": "EndpointEngine", "init_args": engine}, "instruction": "again {question}"}
        few = [{"path": str(tmp_path / "sums"), "count": 8}]
        change = {"questions": few, "batch": 8, "rewriting": {"by": {"class_path": "EngineRewriter", "init_args": by}}}
        broken.set()
        assert run(tmp_path, url, **change) == 0
        assert "8 wordings failed; the same command asks for them again" in capsys.readouterr().out
        assert report_of(tmp_path / "out")["tasks"]["sum"]["questions"] == 8
        broken.clear()
        assert run(tmp_path, url, **change) == 0
        assert "1 wordings were empty, unchanged or lost a number" in capsys.readouterr().out
        report, first = report_of(tmp_path / "out"), len(seen)
        assert (report["cost"]["failed_wordings"], report["cost"]["lost_wordings"]) == (0, 1)
        assert report["tasks"]["sum"]["questions"] == 15
        assert run(tmp_path, url, **change) == 0
        assert len(seen) == first
