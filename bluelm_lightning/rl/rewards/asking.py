"""Asking another model: engines, and what makes asking them safe: retries, a rate limit, a breaker, a cache."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import threading
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.limits import CircuitBreaker, RateLimiter
from bluelm_lightning.types import Score

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}


class JudgeEngine:
    """Completes a prompt: an endpoint, a model in this process. A subclass defines :meth:`complete`."""

    def complete(self, prompt: str, images: Sequence[bytes] = ()) -> str:
        """The reply to one prompt, called from several threads. Whatever it raises is a failed attempt.

        Args:
            prompt: the text.
            images: PNG, JPEG or WebP bytes that belong to it.
        """
        raise TypeError(f"{type(self).__name__} must define complete(prompt, images)")


class OpenAIEngine(JudgeEngine):
    """A chat endpoint of OpenAI's form, such as vLLM serves; pictures travel inside the request.

    Args:
        url: base address, ``http://host:8000/v1``.
        model: its name there.
        api_key_env: environment variable with the key, if one is needed.
        timeout_s: seconds a request may take.
        max_tokens: limit of the reply.
    """

    def __init__(
        self, url: str, model: str, api_key_env: str | None = None, timeout_s: float = 30.0, max_tokens: int = 100
    ) -> None:
        self.url, self.model, self.api_key_env = http_address(url), model, api_key_env
        self.timeout_s, self.max_tokens = timeout_s, max_tokens

    def complete(self, prompt: str, images: Sequence[bytes] = ()) -> str:
        """Raises OSError: no connection, no answer in time, or an HTTP error."""
        shown = [image_part(data) for data in images]
        content = [*shown, {"type": "text", "text": prompt}] if shown else prompt
        messages = [{"role": "user", "content": content}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        reply = chat_completion(self.url, body, self.api_key_env, self.timeout_s)
        return str(reply["choices"][0]["message"]["content"])


def http_address(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ConfigError: it is no http address, or its port is no number.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.path.isascii()
    except ValueError:  # a port that is no number, a bracket that is never closed
        fine = False
    if not fine or any(sign.isspace() or not sign.isprintable() for sign in url):
        raise ConfigError(f"{url!r} is no http address; write http://host:8000/v1", "engine.url")
    return url.rstrip("/")


def chat_completion(url: str, body: dict[str, Any], api_key_env: str | None, timeout_s: float) -> Any:
    """What a chat endpoint of OpenAI's form replies to ``body``, as parsed JSON.

    Raises:
        OSError: no connection, no answer in time, one that is cut off or garbled, or an HTTP error.
        ValueError: the reply is not JSON.
    """
    headers = {"Content-Type": "application/json"}
    if api_key_env:
        headers["Authorization"] = f"Bearer {os.environ.get(api_key_env, '')}"
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return json.load(reply)
    except http.client.HTTPException as error:
        raise ConnectionError(f"the answer is cut off or garbled: {error!r:.200}") from error


def image_part(data: bytes) -> dict[str, Any]:
    """PNG, JPEG or WebP bytes as a part of a message's content."""
    kind = next((name for start, name in _KINDS.items() if data.startswith(start)), "png")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


class Question(NamedTuple):
    """What an engine is asked."""

    prompt: str
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class AskingPlan:
    """How often, how fast and how patiently an engine is asked.

    Args:
        retries: further attempts for a question.
        max_per_second: requests a second; 0 = no limit.
        concurrency: requests at the same time.
        breaker: failures in a row after which nobody is asked for ``pause_s`` seconds.
        pause_s: see ``breaker``.
        cache_size: replies remembered.

    Raises:
        ConfigError: a number out of range.
    """

    retries: int = 1
    max_per_second: float = 0.0
    concurrency: int = 8
    breaker: int = 5
    pause_s: float = 30.0
    cache_size: int = 10_000

    def __post_init__(self) -> None:
        if self.retries < 0 or self.concurrency < 1 or self.breaker < 1 or self.cache_size < 0:
            raise ConfigError("retries and cache_size are 0 or more, concurrency and breaker 1 or more", "judge")


class Asker:
    """Turns questions into scores. Equal questions are asked once; a reply that cannot be read is asked for again.

    Args:
        engine: completes prompts.
        read: a reply -> its value; raises where it is not exactly what was asked for.
        plan: see :class:`AskingPlan`.
    """

    def __init__(self, engine: JudgeEngine, read: Callable[[str], float], plan: AskingPlan) -> None:
        self.engine, self.read, self.plan = engine, read, plan
        self.limiter, self.breaker = RateLimiter(plan.max_per_second), CircuitBreaker(plan.breaker, plan.pause_s)
        self._cache: dict[str, float] = {}
        self._lock = threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Score]:
        """One score a question, in order; missing, with the reason, where no reply could be read."""
        once = list(dict.fromkeys(questions))
        with ThreadPoolExecutor(self.plan.concurrency) as pool:
            found = dict(zip(once, pool.map(self._one, once)))
        return [found[question] for question in questions]

    def _one(self, question: Question) -> Score:
        key = hashlib.sha256(repr(question).encode()).hexdigest()
        with self._lock:
            if key in self._cache:
                return Score(self._cache[key])
        reason = ""
        for _ in range(1 + self.plan.retries):
            if not self.breaker.allows():
                return Score(None, reason or f"the judge failed {self.breaker.limit} times in a row; not asked")
            self.limiter.wait()
            try:
                value = self.read(self.engine.complete(question.prompt, question.images))
            except Exception as error:  # whatever an engine raises, the run goes on without this score
                self.breaker.report(False)
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
                continue
            self.breaker.report(True)
            self._remember(key, value)
            return Score(value)
        return Score(None, reason)

    def _remember(self, key: str, value: float) -> None:
        with self._lock:
            self._cache[key] = value
            while len(self._cache) > self.plan.cache_size:
                self._cache.pop(next(iter(self._cache)))
