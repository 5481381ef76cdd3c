"""What an endpoint may do without a run being lost: be down, ask for time, send garbage, refuse a question."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from endpoints import chat_server
from solver import solver
from tiny import question

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.rl.rewards import AskingPlan, OpenAIEngine
from bluelm_lightning.synthesis import EndpointEngine, patience
from bluelm_lightning.synthesis.engines import Failed
from bluelm_lightning.synthesis.patience import asked_seconds
from bluelm_lightning.types import Generation


def ask(url, copies=6, retries=2, pause_s=0.1, **options):
    """What an engine makes of one question."""
    asking = AskingPlan(retries=retries, concurrency=4, breaker=3, pause_s=pause_s)
    engine = EndpointEngine(url, "m", asking=asking, pause_s=0.0, **options)
    (replies,) = engine.write([question("1+2=?")], True, Sampling(9, 1.0), copies, [1])
    return replies


def test_an_outage_longer_than_all_retries_is_waited_for(monkeypatch):
    monkeypatch.setattr(patience, "_PAUSES", 1000)
    knocks = []

    def down_for_ten(number, body):
        knocks.append(time.monotonic())
        return 500 if number <= 10 else solver(number, body)

    with chat_server(down_for_ten) as (url, seen):
        replies = ask(url, copies=12, retries=3)
    assert all(isinstance(reply, Generation) for reply in replies)
    assert len(seen) == 10 + 12
    # three failures in a row close the gate and three more may be on their way; from then on one goes a pause
    assert knocks[10] - knocks[6] > 0.2, "of 4 pauses, nobody knocks between them"


def test_a_server_that_stays_down_is_given_up():
    started = time.monotonic()
    with chat_server(lambda number, body: (503, {}, b"overloaded")) as (url, seen):
        replies = ask(url, copies=20, pause_s=0.05)
    assert time.monotonic() - started < 20
    assert len(seen) < 20
    assert all("refused with 503: 'overloaded'" in reply.reason and not reply.fatal for reply in replies)


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_for_time_gets_it(code):
    times, lock = [], threading.Lock()

    def busy(number, body):
        with lock:
            times.append(time.monotonic())
            first = len(times) == 1
        return (code, {"Retry-After": "1"}, b"") if first else solver(number, body)

    with chat_server(busy) as (url, _):
        assert isinstance(ask(url, copies=1)[0], Generation)
    assert times[1] - times[0] >= 0.95


def test_a_server_that_asks_for_too_much_time_is_not_waited_for():
    with chat_server(lambda number, body: (429, {"Retry-After": "86400"}, b"a day")) as (url, seen):
        replies = ask(url, copies=30)
    assert len(seen) <= 4
    assert {reply.reason for reply in replies} == {f"{url}: refused with 429: 'a day'"}


def test_retry_after_is_seconds_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < asked_seconds(soon) <= 30
    assert (asked_seconds("7"), asked_seconds("Wed, 21 Oct 2015 07:28:00 GMT")) == (7.0, 0.0)
    assert (asked_seconds(None), asked_seconds("later")) == (None, None)


@pytest.mark.parametrize(
    "said",
    [
        (200, {"Content-Length": "1000"}, b'{"choi'),
        (None, {}, b"garbage line\r\n\r\n"),
        {"choices": [{"message": {"content": "1"}}], "usage": [1]},
        {"choices": [{"message": ["1"]}]},
        [],
    ],
    ids=["cut", "no status", "usage", "message", "a list"],
)
def test_what_is_no_reply_is_asked_for_again(said):
    said = b"[]" if said == [] else said
    with chat_server(lambda number, body: said if number == 1 else solver(number, body)) as (url, seen):
        replies = ask(url, copies=2)
        assert all(isinstance(reply, Generation) for reply in replies)
        assert len(seen) == 3
    if isinstance(said, tuple):
        with chat_server(lambda number, body: said) as (url, seen), pytest.raises(OSError, match="cut off or garbled"):
            OpenAIEngine(url, "m").complete("1+2=?")


def test_a_refusal_of_one_request_leaves_the_others_and_one_of_all_ends_them():
    with chat_server(lambda number, body: 400 if number == 1 else solver(number, body)) as (url, seen):
        replies = ask(url)
    assert [isinstance(reply, Failed) for reply in replies].count(True) == 1
    assert len(seen) == 6
    with chat_server(lambda number, body: 401) as (url, seen):
        assert all(reply.fatal for reply in ask(url, copies=40))
    assert len(seen) <= 8, "those that wait are not sent any more"


@pytest.mark.parametrize(
    "url",
    ["host", "http://127.0.0.1:PORT/v1", "http://", "http://[::1/v1", "http://a b/v1", "ftp://host/v1", "http://h/\n"],
)
def test_an_address_that_is_none_is_refused_at_once(url):
    for engine in (EndpointEngine, OpenAIEngine):
        with pytest.raises(ConfigError, match=r"engine.url: .* is no http address; write http://host:8000/v1"):
            engine(url, "m")


@pytest.mark.parametrize(
    ("key", "message"), [(None, "is not set"), ("", "is not set"), ("a\n", "line break"), ("ä", "no header")]
)
def test_a_key_that_cannot_be_sent_is_named_before_anything_is_asked(key, message, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SOME_KEY", key)
    with chat_server(solver) as (url, seen):
        with pytest.raises(ConfigError, match=f"engine.api_key_env: the environment variable SOME_KEY .*{message}"):
            ask(url, api_key_env="SOME_KEY")
        monkeypatch.setenv("SOME_KEY", "fine")
        assert seen == []
        ask(url, api_key_env="SOME_KEY")
    assert len(seen) == 6
