"""Synthesis from a real endpoint: what is kept is right, and a killed run goes on where it stood."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from endpoints import chat_server
from solver import QUESTIONS, settings, shards, solver, sums
from tiny import png, question

from bluelm_lightning.cli.data import main
from bluelm_lightning.cli.settings import read_settings
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.generation import Sampling
from bluelm_lightning.rl.rewards import AskingPlan
from bluelm_lightning.synthesis import EndpointEngine, EngineRewriter
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.run import synthesize


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
    with chat_server(lambda number, body: "<think>red</think>a circle\ud800") as (url, seen):
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
    assert (made.thinking, made.answer) == ("red", "a circle?")
    assert png()[:4] == sample.images[0][:4]


def test_a_refusal_ends_the_run_and_an_endpoint_that_is_down_too(tmp_path, capsys):
    sums(tmp_path / "sums")
    with chat_server(lambda number, body: 401) as (url, _):
        assert main(["synthesize", settings(tmp_path, url, "refused")]) == 2
        assert "refused with 401" in capsys.readouterr().err
    assert main(["synthesize", settings(tmp_path, url, "down")]) == 2
    error = capsys.readouterr().err
    assert f"no reply to 4 questions, or not all of them; the last error: {url}: URLError" in error
    assert "Connection refused" in error
    assert "the same command goes on" in error


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
