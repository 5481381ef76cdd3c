"""TRLReward: a reward function written for TRL, unchanged."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.base import Reward
from bluelm_lightning.types import Rollout, Score


class TRLReward(Reward):
    """Calls ``func(prompts=, completions=, completion_ids=, **columns)`` as TRL's GRPOTrainer does.

    The columns are the reference answer, as ``answer`` and ``solution``, and every key of the samples' ``meta``.
    A function may be a coroutine. ``None`` in its result is a missing score.

    Args:
        func: the function, or its dotted path, such as ``trl.rewards.think_format_reward``.
        conversational: completions are ``[{"role": "assistant", "content": text}]``, as TRL passes them for chat data
            and as its own rewards expect; else plain texts.

    Raises:
        ConfigError: the path leads to nothing that can be called.
    """

    def __init__(self, func: str | Callable[..., Any], conversational: bool = True) -> None:
        self.func = _imported(func) if isinstance(func, str) else func
        if not callable(self.func):
            raise ConfigError(f"{func} is a {type(self.func).__name__} and cannot be called", "func")
        self.conversational = conversational

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        samples = [rollout.prompt.sample for rollout in rollouts]
        keys = dict.fromkeys(key for sample in samples for key in sample.meta)
        columns: dict[str, list[Any]] = {key: [sample.meta.get(key) for sample in samples] for key in keys}
        answers = [sample.answer for sample in samples]
        columns = {"answer": answers, "solution": answers, **columns}
        texts = [rollout.generation.text for rollout in rollouts]
        result = self.func(
            prompts=[self._prompt(rollout) for rollout in rollouts],
            completions=[[{"role": "assistant", "content": t}] for t in texts] if self.conversational else texts,
            completion_ids=[rollout.ids.tolist() for rollout in rollouts],
            **columns,
        )
        values = asyncio.run(result) if inspect.isawaitable(result) else result  # type: ignore[arg-type]
        return [Score(None, "the function returned None") if v is None else Score(float(v)) for v in values]

    def _prompt(self, rollout: Rollout) -> Any:
        messages = list(rollout.prompt.sample.messages)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
        return turns if self.conversational else "\n".join(turn["content"] for turn in turns)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import {path}: {error}; give package.module.function", "func") from error
