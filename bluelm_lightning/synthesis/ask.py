"""Asking the engine, batch by batch; an answered batch is a file, and is never asked again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bluelm_lightning.data.records import load_json
from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import DataError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.synthesis.engines import Failed, TraceEngine
from bluelm_lightning.synthesis.judge import judged
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.questions import Question, QuestionList
from bluelm_lightning.synthesis.select import Reply
from bluelm_lightning.types import Generation

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
        failed_questions: without all their replies; the next call asks for those that are missing.
        lost_wordings: rewritten questions that are empty, unchanged or lost a number; they are not asked.
        failed_wordings: rewritten questions that there are not; the next call asks for them again.
    """

    seconds: float = 0.0
    tokens: int = 0
    failed_questions: int = 0
    lost_wordings: int = 0
    failed_wordings: int = 0


class Answers:
    """The replies to every question of a plan, kept in ``out/answers``.

    Args:
        plan: see :class:`SynthesisPlan`.
        provenance: of the engine.

    Attributes:
        cost: so far.
        failed: why a question has not all its replies, by its key.
    """

    def __init__(self, plan: SynthesisPlan, provenance: dict[str, str]) -> None:
        self.plan, self.questions = plan, QuestionList(plan)
        self.folder = Path(plan.out) / "answers"
        self.key = self._key(provenance)
        self.cost, self.failed = Cost(), dict[str, str]()

    def all(self, say: Callable[[str], None]) -> Iterator[Asked]:
        """Every question with its replies, in order; asks what is not answered yet.

        Raises:
            DataError: the engine failed for good, or no question of a batch has all its replies; what came is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.questions.num_batches):
            held = self._read(number)
            questions = self._answered(number, held, say)
            self.cost.seconds += held["seconds"]
            self.cost.tokens += held["tokens"]
            self.cost.lost_wordings += sum(text is None for text in held["wordings"].values())
            for question in questions:
                if question.key in held["replies"]:
                    yield Asked(question, [Reply(**reply) for reply in held["replies"][question.key]])
                else:
                    self.cost.failed_questions += 1

    def _answered(self, number: int, held: dict[str, Any], say: Callable[[str], None]) -> list[Question]:
        """The questions of a batch, once the engine was asked for what ``held`` lacks."""
        before = _size(held)
        questions, failed = self.questions.batch(number, held["wordings"])
        self.cost.failed_wordings += len(failed)
        left = [question for question in questions if question.key not in held["replies"]]
        try:
            if left and not any(one.fatal for one in failed):
                failed += self._ask(left, held)
        finally:
            if _size(held) != before:
                write_json(self._path(number), held)  # whole or not at all
        for one in failed:
            if one.fatal:
                raise DataError(f"{one.reason}; correct the request", "engine")
        if left:
            if not any(question.key in held["replies"] for question in questions):
                why = f"the last error: {failed[-1].reason}; the same command goes on from here"
                raise DataError(f"no reply to {len(left)} questions, or not all of them; {why}", "engine")
            spent = f"{held['tokens']} tokens in {held['seconds']:.0f} s"
            say(f"batch {number + 1} of {self.questions.num_batches}: {spent}")
        return questions

    def _ask(self, questions: Sequence[Question], held: dict[str, Any]) -> list[Failed]:
        """Puts replies into ``held``; returns why some are missing."""
        plan, started, partial = self.plan, time.perf_counter(), held["partial"]
        sampling = Sampling(plan.max_new_tokens, plan.temperature, top_p=plan.top_p)
        missing = {q.key: [n for n in range(plan.samples) if str(n) not in partial.get(q.key, {})] for q in questions}
        asked = [question for question in questions if missing[question.key]]
        samples, seeds, copies = [q.sample for q in asked], [q.seed for q in asked], [missing[q.key] for q in asked]
        written = plan.engine.write_copies(samples, plan.thinking, sampling, copies, seeds) if asked else []
        held["seconds"] += time.perf_counter() - started
        failed = []
        for question, numbers, replies in zip(asked, copies, written, strict=True):
            made = {str(n): reply for n, reply in zip(numbers, replies) if isinstance(reply, Generation)}
            lost = [one or Failed("the engine gave no reply") for one in replies if not isinstance(one, Generation)]
            lost += [Failed("the engine gave too few replies")] * (len(replies) < len(numbers))
            held["tokens"] += sum(reply.num_tokens for reply in made.values())
            if made:
                partial.setdefault(question.key, {}).update({n: asdict(reply) for n, reply in made.items()})
            if lost:
                self.failed[question.key] = lost[-1].reason
            failed += lost
        known = ((q, partial.get(q.key, {})) for q in questions)
        whole = [
            (q, [Generation(**p[str(n)]) for n in range(plan.samples)]) for q, p in known if len(p) == plan.samples
        ]
        for key, found in judged(plan, whole):
            held["replies"][key] = [asdict(reply) for reply in found]
            del partial[key]
        return failed

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
        path, fix = self._path(number), "delete it, and its questions are asked again"
        try:
            held = load_json(path.read_bytes(), str(path)) if path.is_file() else {}
        except DataError as error:
            raise DataError(f"{error.reason}; {fix}", str(path)) from error
        if not isinstance(held, dict):
            raise DataError(f"holds no answers; {fix}", str(path))
        fresh = {"key": self.key, "seconds": 0.0, "tokens": 0, "wordings": {}, "replies": {}, "partial": {}}
        return {**fresh, **held} if held.get("key") == self.key else fresh


def _size(held: dict[str, Any]) -> tuple[int, ...]:
    """Changes with everything that is put in."""
    return len(held["wordings"]), len(held["replies"]), sum(map(len, held["partial"].values()))


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
