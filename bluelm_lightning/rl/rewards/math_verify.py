"""MathVerify: are two mathematical expressions equal? Checked in a process that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score

_WORKER = Path(__file__).with_name("math_worker.py")


class MathVerify(Reward):
    """1 if the answer equals the reference as mathematics (LaTeX, fractions, sets, ...), else 0, by ``math-verify``.

    An answer that cannot be judged in time is a missing score: it costs its time and nothing more, since the process
    that judges it ends itself and is started anew.

    Args:
        timeout_s: seconds an answer may take.
        max_chars: longer answers are wrong, unread.

    Raises:
        ConfigError: a timeout that is not positive, or ``math-verify`` is not installed (when it is first needed).
    """

    verdict = True

    def __init__(self, timeout_s: float = 3.0, max_chars: int = 2000) -> None:
        if timeout_s <= 0 or max_chars < 1:
            raise ConfigError(f"timeout_s={timeout_s}, max_chars={max_chars}; give positive numbers", "timeout_s")
        self.timeout_s, self.max_chars = timeout_s, max_chars
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        with self._lock:  # one worker, one question at a time
            return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> Score:
        reference, answer = rollout.prompt.sample.answer, rollout.generation.answer
        if reference is None:
            return Score(None, "the sample has no reference answer")
        if not answer or len(answer) > self.max_chars:
            return Score(0.0)
        task = {"answer": answer, "reference": reference, "seconds": self.timeout_s}
        reply = self._ask(json.dumps(task))
        if reply is None:
            return Score(None, f"not judged within {self.timeout_s:g} s")
        if "error" in reply:
            return Score(None, f"math-verify: {reply['error']}")
        return Score(float(reply["right"]))

    def _ask(self, line: str) -> dict[str, Any] | None:
        """The worker's reply; None if it ended itself."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if reply:
            return json.loads(reply)
        self.close()
        return None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", str(_WORKER)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            assert self._process.stdout is not None
            if not self._process.stdout.readline():
                self.close()
                raise ConfigError("math-verify is not installed; pip install 'bluelm-lightning[math]'", "rewards")
        return self._process

    def close(self) -> None:
        """End the worker; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_s": self.timeout_s, "max_chars": self.max_chars}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
