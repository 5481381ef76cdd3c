"""RemoteReward: rewards computed by HTTP services, as many as there are.

Source: the report's reward services scale with the queries so that reward latency does not stall training.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.rl.rewards.limits import CircuitBreaker
from bluelm_lightning.types import Rollout, Score


class RemoteReward(Reward):
    """Asks ``POST url`` with ``{"items": [...]}`` and expects ``{"scores": [number or null, ...]}``.

    An item holds ``id``, ``question``, ``reference``, ``completion``, ``thinking``, ``answer``, and ``meta``.
    Rollouts travel in chunks, each to the endpoint with the fewest requests under way; a chunk that fails goes to
    another endpoint. An endpoint that fails is left alone for ``pause_s`` seconds; then one chunk goes to it, however
    busy the others are, and says whether it is back. What nobody scored is missing.

    Args:
        urls: addresses, or one path to a file with an address a line, which is read again for every batch: services may
            come and go.
        chunk: rollouts a request.
        in_flight: most requests under way at one endpoint; the others wait their turn.
        timeout_s: seconds a request may take.
        attempts: endpoints that a chunk may try.
        pause_s: see above.

    Raises:
        ConfigError: no address, or a number below 1.
    """

    def __init__(
        self,
        urls: list[str] | str,
        chunk: int = 16,
        in_flight: int = 4,
        timeout_s: float = 30.0,
        attempts: int = 2,
        pause_s: float = 30.0,
    ) -> None:
        if not urls or min(chunk, in_flight, attempts) < 1 or timeout_s <= 0:
            raise ConfigError("give at least one address, and chunk, in_flight, attempts, timeout_s above 0", "urls")
        self.urls, self.chunk, self.in_flight = urls, chunk, in_flight
        self.timeout_s, self.attempts, self.pause_s = timeout_s, attempts, pause_s
        self._breakers: dict[str, CircuitBreaker] = {}
        self._busy: dict[str, int] = {}
        self._changed = threading.Condition()

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        urls = self.endpoints()
        items = [item_of(rollout) for rollout in rollouts]
        chunks = [items[start : start + self.chunk] for start in range(0, len(items), self.chunk)]
        with ThreadPoolExecutor(max(1, min(len(chunks), self.in_flight * len(urls)))) as pool:
            return [score for part in pool.map(lambda chunk: self._score(chunk, urls), chunks) for score in part]

    def endpoints(self) -> list[str]:
        """The addresses of this moment. Raises ConfigError: the file holds none."""
        if not isinstance(self.urls, str):
            return self.urls
        path = Path(self.urls)
        lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
        if not lines:
            raise ConfigError(f"{path} holds no address; write one a line", "urls")
        return lines

    def _score(self, items: list[dict[str, Any]], urls: list[str]) -> list[Score]:
        tried: set[str] = set()
        reason = "no endpoint is up"
        for _ in range(self.attempts):
            url = self._acquire([url for url in urls if url not in tried])
            if url is None:
                break
            tried.add(url)
            try:
                scores = self._request(url, items)
                self._release(url, True)
                return scores
            except Exception as error:  # refused, timed out, nonsense: the next endpoint may do better
                self._release(url, False)
                reason = f"{url}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
        return [Score(None, reason)] * len(items)

    def _acquire(self, urls: list[str]) -> str | None:
        """An endpoint with room, waiting for one if all are busy; None if none of them is up."""
        with self._changed:
            while True:
                due = {url for url in urls if self._breaker(url).due}
                up = [url for url in urls if url in due or not self._breaker(url).open]
                if not up:
                    return None
                free = [url for url in up if self._busy.get(url, 0) < self.in_flight]
                if free:
                    url = min(free, key=lambda u: (u not in due, self._busy.get(u, 0)))
                    self._breaker(url).allows()  # takes the trial, of the chosen one alone
                    self._busy[url] = self._busy.get(url, 0) + 1
                    return url
                self._changed.wait()

    def _release(self, url: str, worked: bool) -> None:
        with self._changed:
            self._busy[url] -= 1
            self._breaker(url).report(worked)
            self._changed.notify_all()

    def _breaker(self, url: str) -> CircuitBreaker:
        return self._breakers.setdefault(url, CircuitBreaker(1, self.pause_s))

    def _request(self, url: str, items: list[dict[str, Any]]) -> list[Score]:
        body = json.dumps({"items": items}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
            scores = json.load(reply)["scores"]
        if len(scores) != len(items):
            raise ValueError(f"{len(scores)} scores for {len(items)} items")
        return [Score(None, f"{url} has no score") if s is None else Score(float(s)) for s in scores]


def item_of(rollout: Rollout) -> dict[str, Any]:
    """What a service gets of a rollout."""
    sample, written = rollout.prompt.sample, rollout.generation
    asked = next((turn["content"] for turn in reversed(sample.messages) if turn["role"] == "user"), "")
    return {
        "id": sample.id,
        "question": asked,
        "reference": sample.answer,
        "completion": written.text,
        "thinking": written.thinking,
        "answer": written.answer,
        "meta": sample.meta,
    }
