"""EndpointEngine: traces from a chat endpoint of OpenAI's form, with retries, a rate limit and a breaker."""

from __future__ import annotations

import hashlib
import time
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bluelm_lightning.data.chat import IMAGE, THINK, parse_generation
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.rl.rewards import AskingPlan
from bluelm_lightning.rl.rewards.asking import chat_completion, image_part
from bluelm_lightning.rl.rewards.limits import CircuitBreaker, RateLimiter
from bluelm_lightning.synthesis.engines import TraceEngine
from bluelm_lightning.types import Generation, Sample

_LONGEST_WAIT = 30.0  # seconds between two attempts
_WORTH_RETRYING = {408, 409, 425, 429}  # and everything from 500 on


class EndpointEngine(TraceEngine):
    """Asks a server. Thinking is read from ``reasoning_content`` or ``reasoning``, else from ``<think>`` in the text.

    Args:
        url: base address, ``http://host:8000/v1``.
        model: its name there.
        api_key_env: environment variable with the key, if one is needed.
        timeout_s: seconds a request may take.
        instruction: a system message that goes first.
        extra: further keys of the request, such as ``{chat_template_kwargs: {enable_thinking: true}}``.
        asking: retries, rate limit, concurrency and breaker; default: 4 retries, 16 requests at a time.
        pause_s: seconds before the first retry; each further pause is twice as long.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str | None = None,
        timeout_s: float = 300.0,
        instruction: str | None = None,
        extra: dict[str, Any] | None = None,
        asking: AskingPlan | None = None,
        pause_s: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no http address", "engine.url")
        self.url, self.model, self.api_key_env, self.timeout_s = url.rstrip("/"), model, api_key_env, timeout_s
        self.instruction, self.extra, self.pause_s = instruction, dict(extra or {}), pause_s
        self.asking = asking or AskingPlan(retries=4, concurrency=16, breaker=32)
        self.limiter = RateLimiter(self.asking.max_per_second)
        self.breaker = CircuitBreaker(self.asking.breaker, self.asking.pause_s)

    def write(
        self, samples: Sequence[Sample], thinking: bool, sampling: Sampling, copies: int, seeds: Sequence[int]
    ) -> list[list[Generation | None]]:
        """See :meth:`TraceEngine.write`. ``thinking`` is the server's affair: see ``extra`` and ``instruction``.

        Raises:
            DataError: the server refuses (a wrong key, an unknown model), which asking again would not change.
        """
        settings = {"model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p, **self.extra}
        settings["max_tokens"] = sampling.max_new_tokens
        bodies = [
            {**settings, "messages": messages, "seed": (seed * 1_000_003 + copy) % (1 << 31)}
            for messages, seed in zip(map(self._messages, samples), seeds)
            for copy in range(copies)
        ]
        with ThreadPoolExecutor(self.asking.concurrency) as pool:
            replies = list(pool.map(self._ask, bodies))
        return [replies[n * copies : (n + 1) * copies] for n in range(len(samples))]

    def provenance(self) -> dict[str, str]:
        """The address and the model's name there, and a hash of what each request says besides."""
        said = repr((self.instruction, sorted(self.extra.items())))
        return {"engine": self.url, "model": self.model, "request": hashlib.sha256(said.encode()).hexdigest()[:16]}

    def _ask(self, body: dict[str, Any]) -> Generation | None:
        for attempt in range(1 + self.asking.retries):
            if not self.breaker.allows():
                return None
            if attempt:
                time.sleep(min(self.pause_s * 2 ** (attempt - 1), _LONGEST_WAIT))
            self.limiter.wait()
            try:
                reply = read_reply(chat_completion(self.url, body, self.api_key_env, self.timeout_s))
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in _WORTH_RETRYING:
                    said = error.read()[:200].decode(errors="replace")
                    raise DataError(f"refused with {error.code}: {said!r}; correct the request", self.url) from error
                self.breaker.report(False)
            except (OSError, ValueError, KeyError, TypeError, IndexError):  # no answer in time, or no answer at all
                self.breaker.report(False)
            else:
                self.breaker.report(True)
                return reply
        return None

    def _messages(self, sample: Sample) -> list[dict[str, Any]]:
        turns = sample.messages[:-1] if sample.messages[-1]["role"] == "assistant" else sample.messages
        images = iter(sample.images)
        first = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return [*first, *({"role": turn["role"], "content": _content(turn, images)} for turn in turns)]


def _content(turn: Any, images: Any) -> str | list[dict[str, Any]]:
    """A turn's text; with its pictures in their places, if it has any."""
    texts = turn["content"].split(IMAGE) if turn["role"] != "assistant" else [turn["content"]]
    if len(texts) == 1:
        return texts[0]
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        parts += [image_part(next(images))] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _text(said: Any) -> str:
    """What was said; half a surrogate pair, which no file can hold, becomes a question mark."""
    return str(said or "").encode(errors="replace").decode()


def read_reply(reply: Any) -> Generation:
    """A reply of the endpoint as a Generation; its tokens are those that the server counted, else words.

    Raises:
        KeyError, TypeError, IndexError: it has another form.
    """
    choice = reply["choices"][0]
    message = choice["message"]
    content, trace = _text(message["content"]), _text(message.get("reasoning_content") or message.get("reasoning"))
    thinking, answer = (trace.strip(), content.strip()) if trace else parse_generation(content)
    finished = choice.get("finish_reason", "stop") == "stop"
    text = f"{THINK}{trace}</think>{content}" if trace else content
    count = (reply.get("usage") or {}).get("completion_tokens")
    tokens = int(count) if count is not None else len(text.split())
    return Generation([], text, thinking, answer if finished else None, tokens, finished)
