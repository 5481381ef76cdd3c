"""Synthesis with a real model and a real endpoint: what is kept is right, and a killed run goes on where it stood."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from random import Random

import pytest
import yaml
from cli_project import fit, write_project
from endpoints import chat_server
from tiny import png, question

from bluelm_lightning.cli.data import main
from bluelm_lightning.cli.settings import read_settings
from bluelm_lightning.data.shards import ShardSource, ShardWriter
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling, roll_out
from bluelm_lightning.rl.rewards import AskingPlan, steps_hold
from bluelm_lightning.synthesis import EndpointEngine, EngineRewriter, LocalEngine, Rewriter, TemplateRewriter
from bluelm_lightning.synthesis.plan import Band, SynthesisPlan
from bluelm_lightning.synthesis.rewrite import reworded, wordings
from bluelm_lightning.synthesis.run import synthesize
from bluelm_lightning.synthesis.select import Reply, choose, vote_of
from bluelm_lightning.types import Prompt

QUESTIONS = 24


def said(answer, right=None, thinking="t", tokens=10, finished=True):
    return Reply(thinking, answer, tokens, finished, {} if right is None else {"rule": float(right)}, right is not None)


# ---------------------------------------------------------------- what is kept
def test_each_reply_is_kept_or_dropped_for_one_reason():
    replies = [
        said("7", True, "a"), said("8", False), said("7", True, "a"), said("7", True, "b"), said("7", True, "c", 50),
        said(None, False, finished=False), said("7", True, None), said("7", True, "d", 200), said("7", True, "e"),
    ]  # fmt: skip
    bands = [Band("short", most=20, keep=2), Band("long", least=40, most=100)]
    chosen = choose(replies, thinking=True, agreement=0.0, bands=bands)
    assert chosen.kept == [(0, "short"), (3, "short"), (4, "long")]
    wanted = {"wrong": 1, "duplicate": 1, "unfinished": 1, "form": 1, "length": 1, "surplus": 1}
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


# ---------------------------------------------------------------- the endpoint
def sums(folder):
    """Shards of sums; the last one without a reference answer."""
    with ShardWriter(folder) as writer:
        for n in range(QUESTIONS):
            sample = question(f"{n}+{n + 3}=?", str(2 * n + 3), id=f"sum{n}", source="sums", task="sum")
            sample.answer = str(2 * n + 3) if n < QUESTIONS - 1 else None
            writer.write(sample)
    return folder


def solver(number, body):
    """Adds the numbers of the question; by the request's seed right or wrong, short or long."""
    a, b = map(int, re.findall(r"\d+", body["messages"][-1]["content"])[:2])
    rng = Random(body["seed"])
    total = a + b + rng.choice([0, 0, 0, 1])
    trace = f"{a}+{b}={total}" + f" check {total}" * rng.choice([0, 9])
    message = {"content": str(total), "reasoning_content": trace}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": len(trace) // 2}}


def settings(folder, url, out, **change):
    engine = {"url": url, "model": "m", "pause_s": 0.0, "asking": {"retries": 2, "concurrency": 4}}
    plan = {
        "questions": [{"path": str(folder / "sums")}],
        "engine": {"class_path": "EndpointEngine", "init_args": engine},
        "out": str(folder / out),
        "verifiers": {"answer": {"class_path": "NumericMatch"}, "steps": {"class_path": "Steps"}},
        "samples": 4,
        "batch": 4,
        "bands": [{"name": "short", "most": 10}, {"name": "long", "least": 11}],
    }
    (folder / f"{out}.yaml").write_text(yaml.safe_dump({**plan, **change}))
    return str(folder / f"{out}.yaml")


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run against an endpoint, and what the endpoint saw."""
    folder = tmp_path_factory.mktemp("endpoint")
    sums(folder / "sums")
    with chat_server(solver) as (url, seen):
        config = settings(folder, url, "made")
        assert main(["synthesize", config]) == 0
        first = len(seen)
        assert main(["synthesize", config]) == 0
        assert len(seen) == first, "nothing is asked twice"
    return folder, seen, json.loads((folder / "made" / "report.json").read_text())


def test_kept_traces_are_right_and_counted(made):
    folder, seen, report = made
    kept = list(map(ShardSource(folder / "made" / "shards").__getitem__, range(report["tasks"]["sum"]["kept"])))
    row = report["tasks"]["sum"]
    assert row["replies"] == 4 * QUESTIONS == len(seen) == row["kept"] + sum(row["dropped"].values())
    assert 1 <= row["dropped"]["unverified"] <= 4, "the question without a reference"
    assert row["kept_by_band"].keys() == {"short", "long"}
    assert 0.5 < row["right"] < 1
    for sample in kept:
        *_, asked, reply = sample.messages
        assert int(reply["content"]) == sum(map(int, re.findall(r"\d+", asked["content"])))
        assert reply["thinking"].startswith(asked["content"][:-1])
        origin = sample.meta["synthesis"]
        assert origin["model"] == "m"
        assert origin["scores"] == {"answer": 1.0, "steps": 1.0}
        assert {"seed", "copy", "votes", "question", "request", "band", "tokens"} <= origin.keys()
    assert report["cost"]["tokens"] == sum(
        len(solver(0, b)["choices"][0]["message"]["reasoning_content"]) // 2 for b in seen
    )


def test_what_is_chosen_may_change_without_asking_again(made):
    folder, _, report = made
    plan = yaml.safe_load((folder / "made.yaml").read_text())
    (folder / "stricter.yaml").write_text(yaml.safe_dump({**plan, "agreement": 1.0}))
    again = synthesize(read_settings(SynthesisPlan, str(folder / "stricter.yaml")))  # the server is gone
    assert 0 < again["tasks"]["sum"]["kept"] < report["tasks"]["sum"]["kept"]
    assert again["tasks"]["sum"]["right"] == report["tasks"]["sum"]["right"]


def test_a_killed_process_goes_on_where_it_stood(made, tmp_path):
    folder = made[0]
    enough, go_on = threading.Event(), threading.Event()

    def slow(number, body):
        if number > 9 and not go_on.is_set():  # in the third batch of four questions
            enough.set()
            go_on.wait(60)
        return solver(number, body)

    with chat_server(slow) as (url, seen):
        config = settings(folder, url, "killed", samples=2)
        command = [sys.executable, "-m", "bluelm_lightning.cli.data", "synthesize", config]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert enough.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        go_on.set()
        finished = {body["seed"] for body in seen[:8]}
        assert not (folder / "killed" / "report.json").exists()
        before = len(seen)
        assert main(["synthesize", config]) == 0
        after = seen[before:]
        assert not finished & {body["seed"] for body in after}
        assert len(after) == 2 * QUESTIONS - 8
        whole = settings(folder, url, "whole", samples=2)
        assert main(["synthesize", whole]) == 0
    assert shards(folder / "killed") == shards(folder / "whole")


def test_an_endpoint_that_fails_now_and_then_is_asked_again(tmp_path):
    troubles = iter([500, 429, b"no JSON", {"error": "overloaded"}])
    lock = threading.Lock()

    def moody(number, body):
        with lock:
            return next(troubles, None) or solver(number, body)

    with chat_server(moody) as (url, seen):
        engine = EndpointEngine(url, "m", asking=AskingPlan(retries=4, concurrency=3), pause_s=0.0)
        written = engine.write([question("1+2=?"), question("3+4=?")], True, Sampling(9, 1.0), 3, [1, 2])
    assert all(made.answer and made.thinking for replies in written for made in replies)
    assert len(seen) == 6 + 4
    assert len({body["seed"] for body in seen}) == 6


def test_requests_run_side_by_side():
    inside, most, lock = [0], [0], threading.Lock()

    def slow(number, body):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        with lock:
            inside[0] -= 1
        return solver(number, body)

    with chat_server(slow) as (url, _):
        engine = EndpointEngine(url, "m", asking=AskingPlan(concurrency=4))
        engine.write([question("1+2=?")], True, Sampling(9, 1.0), 12, [1])
    assert 2 <= most[0] <= 4


def test_pictures_and_instructions_travel_in_their_places():
    with chat_server(lambda number, body: "<think>red</think>a circle") as (url, seen):
        engine = EndpointEngine(url, "m", instruction="be brief", extra={"top_k": 3})
        sample = question("what is it?", images=1)
        sample.messages[0]["content"] = "look: <image>what is it?"
        ((made,),) = engine.write([sample], True, Sampling(9, 1.0), 1, [1])
    system, user = seen[0]["messages"]
    assert system == {"role": "system", "content": "be brief"}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url", "text"]
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert seen[0]["top_k"] == 3
    assert (made.thinking, made.answer) == ("red", "a circle")
    assert png()[:4] == sample.images[0][:4]


def test_a_refusal_ends_the_run_and_an_endpoint_that_is_down_too(tmp_path, capsys):
    sums(tmp_path / "sums")
    with chat_server(lambda number, body: 401) as (url, _):
        assert main(["synthesize", settings(tmp_path, url, "refused")]) == 2
        assert "refused with 401" in capsys.readouterr().err
    assert main(["synthesize", settings(tmp_path, url, "down")]) == 2
    assert "no reply to 4 questions; the same command goes on" in capsys.readouterr().err


def test_an_engine_can_rewrite_and_its_wordings_are_kept(tmp_path):
    sums(tmp_path / "sums")

    def both(number, body):
        text = body["messages"][-1]["content"]
        if text.startswith("again"):
            return "how much is " + re.findall(r"\d+\+\d+", text)[0] if "5+8" not in text else "some sum"
        return solver(number, body)

    with chat_server(both) as (url, seen):
        plan = read_settings(SynthesisPlan, settings(tmp_path, url, "out", samples=1, questions=[
            {"path": str(tmp_path / "sums"), "count": 6},
        ], rewriting={"by": {"class_path": "EngineRewriter", "init_args": {
            "engine": {"class_path": "EndpointEngine", "init_args": {"url": url, "model": "m"}},
            "instruction": "again: {question}",
        }}}))  # fmt: skip
        assert isinstance(plan.rewriting.by, EngineRewriter)
        report = synthesize(plan)
        first = len(seen)
        synthesize(plan)
        assert len(seen) == first
    lost = sum("5+8" in body["messages"][-1]["content"] for body in seen if body["messages"][-1]["content"][0] == "a")
    assert report["cost"]["lost_wordings"] == lost
    assert report["tasks"]["sum"]["questions"] == 12 - lost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampels": 3}, "sampels: unknown key of SynthesisPlan; did you mean samples?"),
        ({"verifiers": {"steps": {"class_path": "Steps"}}}, "verifiers: none judges the answer"),
        ({"verifiers": {"a": {"class_path": "ExactMach"}}}, "did you mean ExactMatch?"),
        ({"temperature": 0.0}, "temperature: 4 greedy samples are all the same"),
        ({"agreement": 2.0}, "agreement: 2.0 is not between 0 and 1"),
        ({"questions": [{"path": "nowhere"}]}, "nowhere"),
        ({"engine": {"class_path": "EndpointEngine", "init_args": {"url": "host", "model": "m"}}}, "no http address"),
        ({"engine": {"class_path": "os.system"}}, "may not reach os"),
    ],
)
def test_bad_settings_end_with_one_line(tmp_path, change, message, capsys):
    assert main(["synthesize", settings(tmp_path, "http://localhost:9", "bad", **change)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
