"""Asking the engine, batch by batch; an answered batch is a file, and is never asked again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import DataError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.rl.rewards import RewardRouter
from bluelm_lightning.synthesis.engines import TraceEngine
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.questions import Question, QuestionList
from bluelm_lightning.synthesis.select import Reply
from bluelm_lightning.types import Encoded, Generation, Prompt, Rollout

_NONE = torch.empty(0, dtype=torch.long)
_PLAIN = (str, int, float, bool)


@dataclass
class Asked:
    """A question and the replies to it."""

    question: Question
    replies: list[Reply]


@dataclass
class Cost:
    """What asking cost.

    Args:
        seconds: spent in the engine, wall clock.
        tokens: written by it.
        failed_questions: without all their replies; the next call asks them again.
        lost_wordings: rewritten questions that failed or lost a number; they are not asked.
    """

    seconds: float = 0.0
    tokens: int = 0
    failed_questions: int = 0
    lost_wordings: int = 0


class Answers:
    """The replies to every question of a plan, kept in ``out/answers``.

    Args:
        plan: see :class:`SynthesisPlan`.
        provenance: of the engine.
    """

    def __init__(self, plan: SynthesisPlan, provenance: dict[str, str]) -> None:
        self.plan, self.questions = plan, QuestionList(plan)
        self.folder = Path(plan.out) / "answers"
        self.key = self._key(provenance)
        self.cost = Cost()

    def all(self, say: Callable[[str], None]) -> Iterator[Asked]:
        """Every question with its replies, in order; asks what is not answered yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.questions.num_batches):
            held = self._read(number)
            questions = self.questions.batch(number, held["wordings"])
            left = [question for question in questions if question.key not in held["replies"]]
            if left:
                self._ask(left, held)
                write_json(self._path(number), held)  # whole or not at all
                spent = f"{held['tokens']} tokens in {held['seconds']:.0f} s"
                say(f"batch {number + 1} of {self.questions.num_batches}: {spent}")
            self.cost.seconds += held["seconds"]
            self.cost.tokens += held["tokens"]
            self.cost.lost_wordings += sum(text is None for text in held["wordings"].values())
            for question in questions:
                if question.key in held["replies"]:
                    yield Asked(question, [Reply(**reply) for reply in held["replies"][question.key]])
                else:
                    self.cost.failed_questions += 1

    def _ask(self, questions: Sequence[Question], held: dict[str, Any]) -> None:
        plan, started = self.plan, time.perf_counter()
        sampling = Sampling(plan.max_new_tokens, plan.temperature, top_p=plan.top_p)
        samples, seeds = [q.sample for q in questions], [q.seed for q in questions]
        written = plan.engine.write(samples, plan.thinking, sampling, plan.samples, seeds)
        held["seconds"] += time.perf_counter() - started
        held["tokens"] += sum(made.num_tokens for replies in written for made in replies if made)
        whole = [(q, [m for m in made if m]) for q, made in zip(questions, written) if all(m is not None for m in made)]
        if not whole:
            raise DataError(f"no reply to {len(questions)} questions; the same command goes on from here", "engine")
        for question, replies in self._judged(whole):
            held["replies"][question.key] = [asdict(reply) for reply in replies]

    def _judged(self, whole: list[tuple[Question, list[Generation]]]) -> Iterator[tuple[Question, list[Reply]]]:
        rollouts = [
            as_rollout(question, made, group, self.plan.thinking)
            for group, (question, replies) in enumerate(whole)
            for made in replies
        ]
        scores: list[dict[str, float]] = [{} for _ in rollouts]
        if self.plan.verifiers:
            scored = RewardRouter(self.plan.verifiers, on_error="stop").score(rollouts)
            scores = [{n: s.value for n, s in one.rewards.items() if s.value is not None} for one in scored]
        verdicts = {name for name, reward in self.plan.verifiers.items() if reward.verdict}
        found = iter(scores)
        for question, replies in whole:
            judged = ((g, next(found)) for g in replies)
            yield (
                question,
                [Reply(g.thinking, g.answer, g.num_tokens, g.finished, s, bool(verdicts & set(s))) for g, s in judged],
            )

    # ------------------------------------------------------------------ files
    def _key(self, provenance: dict[str, str]) -> str:
        """Of everything that replies depend on."""
        plan = self.plan
        asked = [plan.thinking, plan.samples, plan.temperature, plan.top_p, plan.max_new_tokens, plan.batch, plan.seed]
        parts = [self.questions.fingerprint, provenance, asked, _described(plan.verifiers), _described(plan.rewriting)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _read(self, number: int) -> dict[str, Any]:
        path = self._path(number)
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if held.get("key") != self.key:
            held = {"key": self.key, "seconds": 0.0, "tokens": 0, "wordings": {}, "replies": {}}
        return held


def as_rollout(question: Question, made: Generation, group: int, thinking: bool) -> Rollout:
    """A reply in the form in which rewards read it; an endpoint's has text but no ids."""
    ids = torch.tensor(made.ids, dtype=torch.long)
    empty = Encoded(question.sample.id, question.sample.source, _NONE, _NONE, torch.empty(0, 3, 1, 1).byte(), _NONE)
    prompt = Prompt(question.sample, empty, thinking, seed=question.seed)
    return Rollout(prompt, group, ids, torch.zeros(len(ids)), torch.zeros(len(ids), dtype=torch.bool), made, 0)


def _described(part: Any) -> Any:
    """Settings of an object as plain values: its class and the attributes that are plain themselves."""
    if isinstance(part, dict):
        return {str(name): _described(value) for name, value in sorted(part.items())}
    if isinstance(part, list | tuple):
        return [_described(value) for value in part]
    if part is None or isinstance(part, _PLAIN):
        return part
    if isinstance(part, TraceEngine):
        return part.provenance()  # how patiently it is asked changes no reply
    inside = {name: value for name, value in getattr(part, "__dict__", {}).items() if not name.startswith("_")}
    if not type(part).__module__.startswith("bluelm_lightning"):  # of somebody else's object, what is plain itself
        inside = {name: value for name, value in inside.items() if isinstance(value, _PLAIN)}
    return [type(part).__name__, _described(inside)]
