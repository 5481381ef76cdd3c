"""Remote rewards against real HTTP services: chunks, failures, back-pressure, and services that come and go."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from endpoints import serving
from rollouts import rollout

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards import RemoteReward
from bluelm_lightning.rl.rewards.limits import CircuitBreaker


@contextmanager
def service(reply=None):
    """Scores an item by its answer as a number; ``reply(items)`` may return something else, or an HTTP code."""
    seen, most = [], [0, 0]  # requests; under way now, and at most

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
            seen.append(items)
            most[0] += 1
            most[1] = max(most)
            said = reply(items) if reply else [float(item["answer"]) for item in items]
            most[0] -= 1
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            if not isinstance(said, int):
                self.wfile.write(json.dumps({"scores": said}).encode())

        def log_message(self, *args):
            pass

    with serving(Handler) as url:
        yield f"{url}/score", seen, most


def batch(num: int):
    return [rollout(f"<think>hm</think>{n}</s>") for n in range(num)]


def test_chunks_come_back_in_order():
    with service() as (url, seen, _):
        got = RemoteReward([url], chunk=3).score(batch(8))
        assert [score.value for score in got] == [float(n) for n in range(8)]
        assert sorted(len(items) for items in seen) == [2, 3, 3]
        item = next(item for items in seen for item in items if item["answer"] == "5")
        wanted = {"question": "what is it?", "reference": "8", "completion": "<think>hm</think>5", "thinking": "hm"}
        assert wanted.items() <= item.items()


@pytest.mark.parametrize("bad", [lambda items: 500, lambda items: [1.0], lambda items: ["x"] * len(items)])
def test_what_one_service_fails_another_does(bad):
    with service(bad) as (broken, seen, _), service() as (good, done, _):
        made = RemoteReward([broken, good], chunk=2, in_flight=1)
        assert [score.value for score in made.score(batch(12))] == [float(n) for n in range(12)]
        assert len(seen) == 1  # then it is left alone
        assert len(done) == 6


def test_nobody_up_is_missing_and_told():
    with service() as (url, _, _):
        pass
    made = RemoteReward([url], chunk=2, in_flight=1)
    got = made.score(batch(6))
    assert [score.value for score in got] == [None] * 6
    assert "refused" in got[0].reason
    assert "no endpoint is up" in got[-1].reason


def test_a_slow_service_costs_its_timeout_and_null_is_missing():
    scored = threading.Event()
    with service(lambda items: scored.wait(60) and [1.0] * len(items)) as (url, _, _):
        started = time.monotonic()
        assert RemoteReward([url], timeout_s=0.3).score(batch(2))[0].value is None
        assert time.monotonic() - started < 30
        scored.set()
    with service(lambda items: [None, 2]) as (url, _, _):
        got = RemoteReward([url]).score(batch(2))
        assert [score.value for score in got] == [None, 2.0]
        assert "has no score" in got[0].reason


def test_back_pressure_and_the_least_busy_first():
    def slowly(items):
        time.sleep(0.1)
        return [1.0] * len(items)

    with service(slowly) as (a, seen_a, most_a), service(slowly) as (b, seen_b, most_b):
        RemoteReward([a, b], chunk=1, in_flight=2).score(batch(16))
        assert most_a[1] <= 2
        assert most_b[1] <= 2
        assert len(seen_a) + len(seen_b) == 16
        assert min(len(seen_a), len(seen_b)) >= 4


def test_each_service_that_failed_is_tried_again_after_its_pause():
    clock = [0.0]
    with (
        service() as (up, done, _),
        service() as (b, seen_b, _),
        service() as (c, seen_c, _),
        service(lambda items: 500) as (down, seen_down, _),
    ):
        made = RemoteReward([up, b, c, down], chunk=1, in_flight=1)
        for url in (b, c, down):
            made._breakers[url] = CircuitBreaker(1, 30.0, now=lambda: clock[0])
            made._breakers[url].report(False)
        made.score(batch(4))
        assert (len(done), len(seen_b), len(seen_c), len(seen_down)) == (4, 0, 0, 0)
        clock[0] = 31.0
        for _ in range(3):  # however free the first one is
            assert made.score(batch(1))[0].value == 0.0
        assert (len(done), len(seen_b), len(seen_c), len(seen_down)) == (5, 1, 1, 1)
        made.score(batch(4))
        assert len(seen_down) == 1
        assert not made._breakers[b].open
        clock[0] = 62.0
        made.score(batch(1))
        assert len(seen_down) == 2


def test_services_are_read_from_a_file_each_time(tmp_path):
    path = tmp_path / "services.txt"
    made = RemoteReward(str(path))
    with pytest.raises(ConfigError, match="holds no address"):
        made.score(batch(1))
    with service() as (one, seen_one, _), service() as (two, seen_two, _):
        for url in (one, two):
            path.write_text(url + "\n")
            made.score(batch(1))
        assert (len(seen_one), len(seen_two)) == (1, 1)


@pytest.mark.parametrize("wrong", [{"urls": []}, {"urls": ["x"], "chunk": 0}, {"urls": ["x"], "timeout_s": 0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match="urls"):
        RemoteReward(**wrong)
