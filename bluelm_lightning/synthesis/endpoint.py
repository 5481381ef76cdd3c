"""EndpointEngine: traces from a chat endpoint of OpenAI's form, with retries, a rate limit and a breaker."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.rl.rewards import AskingPlan
from bluelm_lightning.rl.rewards.asking import chat_completion, http_address
from bluelm_lightning.rl.rewards.limits import RateLimiter
from bluelm_lightning.synthesis.chat_form import content_of, read_reply
from bluelm_lightning.synthesis.engines import Failed, TraceEngine
from bluelm_lightning.synthesis.patience import Gate, asked_seconds
from bluelm_lightning.types import Generation, Sample

_LONGEST_WAIT = 30.0  # seconds between two attempts
_WORTH_RETRYING = {408, 409, 425, 429}  # and everything from 500 on
_OF_ONE_REQUEST = {400, 413, 422}  # such as one that is too long; any other refusal concerns all
_MAY_ASK_FOR_TIME = {429, 503}  # by Retry-After
# No answer in time, or none of the form of an answer.
_NO_ANSWER = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


class EndpointEngine(TraceEngine):
    """Asks a server. Thinking is read from ``reasoning_content`` or ``reasoning``, else from ``<think>`` in the text.

    Args:
        url: base address, ``http://host:8000/v1``.
        model: its name there.
        api_key_env: environment variable with the key, if one is needed.
        timeout_s: seconds a request may take.
        instruction: a system message that goes first.
        extra: further keys of the request, such as ``{chat_template_kwargs: {enable_thinking: true}}``.
        asking: retries, rate limit, concurrency and breaker; default: 4 retries, 16 requests at a time. While the
            breaker is open requests wait, for five of its pauses without one reply at most.
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
        self.url, self.model, self.api_key_env, self.timeout_s = http_address(url), model, api_key_env, timeout_s
        self.instruction, self.extra, self.pause_s = instruction, dict(extra or {}), pause_s
        self.asking = asking or AskingPlan(retries=4, concurrency=16, breaker=32)
        self.limiter = RateLimiter(self.asking.max_per_second)
        self.gate = Gate(self.asking.breaker, self.asking.pause_s)
        self._last: Failed | None = None  # newest failure, for those who are not sent any more

    def write(
        self, samples: Sequence[Sample], thinking: bool, sampling: Sampling, copies: int, seeds: Sequence[int]
    ) -> list[list[Generation | Failed]]:
        """See :meth:`TraceEngine.write`. ``thinking`` is the server's affair: see ``extra`` and ``instruction``.

        A refusal that another request would meet too (a wrong key, an unknown model) is a fatal failure.

        Raises:
            ConfigError: there is no key, or none that can be sent.
        """
        return self.write_copies(samples, thinking, sampling, [range(copies)] * len(samples), seeds)

    def write_copies(
        self,
        samples: Sequence[Sample],
        thinking: bool,
        sampling: Sampling,
        copies: Sequence[Sequence[int]],
        seeds: Sequence[int],
    ) -> list[list[Generation | Failed]]:
        """See :meth:`TraceEngine.write_copies`; nothing else is asked."""
        self._check_key()
        settings = {"model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p, **self.extra}
        settings["max_tokens"] = sampling.max_new_tokens
        bodies = [
            {**settings, "messages": messages, "seed": (seed * 1_000_003 + copy) % (1 << 31)}
            for messages, seed, numbers in zip(map(self._messages, samples), seeds, copies)
            for copy in numbers
        ]
        self.gate.start()
        self._last = None
        with ThreadPoolExecutor(self.asking.concurrency) as pool:
            try:
                replies = iter(list(pool.map(self._ask, bodies)))
            except BaseException:  # Ctrl-C: nobody waits for a server that is down
                self.gate.stop()
                raise
        return [list(islice(replies, len(numbers))) for numbers in copies]

    def provenance(self) -> dict[str, str]:
        """The address and the model's name there, and a hash of what each request says besides."""
        said = repr((self.instruction, sorted(self.extra.items())))
        return {"engine": self.url, "model": self.model, "request": hashlib.sha256(said.encode()).hexdigest()[:16]}

    def _ask(self, body: dict[str, Any]) -> Generation | Failed:
        failed, own = None, 0  # own: failures that are the request's, not those of a server that is down
        while own <= self.asking.retries:
            if own:
                self.gate.pause(min(self.pause_s * 2 ** (own - 1), _LONGEST_WAIT))
            if not self.gate.wait():
                break
            self.limiter.wait()
            try:
                reply = read_reply(chat_completion(self.url, body, self.api_key_env, self.timeout_s))
            except urllib.error.HTTPError as error:
                refused = error.code < 500 and error.code not in _WORTH_RETRYING
                fatal = refused and error.code not in _OF_ONE_REQUEST
                failed = Failed(f"{self.url}: refused with {error.code}: {_said(error)!r}", fatal)
                self._remember(failed)
                if refused:
                    self.gate.stop() if fatal else self.gate.worked()
                    return failed
                asked = asked_seconds(error.headers.get("Retry-After")) if error.code in _MAY_ASK_FOR_TIME else None
                own += self.gate.failed(failed.reason, asked)
            except _NO_ANSWER as error:
                failed = Failed(f"{self.url}: {type(error).__name__}: {error!s:.200}")
                self._remember(failed)
                own += self.gate.failed(failed.reason)
            else:
                self.gate.worked()
                return reply
        return failed or self._last or Failed(f"{self.url}: down for too long; not asked")

    def _remember(self, failed: Failed) -> None:
        if not (self._last and self._last.fatal):
            self._last = failed

    def _check_key(self) -> None:
        if self.api_key_env is None:
            return
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} is not set; export it", "engine.api_key_env"
            )
        if not key.isascii() or not key.isprintable():
            why = "holds a line break or a sign that no header can carry"
            raise ConfigError(f"the environment variable {self.api_key_env} {why}; set it anew", "engine.api_key_env")

    def _messages(self, sample: Sample) -> list[dict[str, Any]]:
        turns = sample.messages[:-1] if sample.messages[-1]["role"] == "assistant" else sample.messages
        images = iter(sample.images)
        first = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return [*first, *({"role": turn["role"], "content": content_of(turn, images)} for turn in turns)]


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what the server said; nothing where that is cut off too."""
    try:
        return error.read()[:200].decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
