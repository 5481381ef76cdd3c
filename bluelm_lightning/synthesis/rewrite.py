"""Questions in other words: by templates, or by an engine that is asked to.

A rewritten question must keep every number of the original: else its reference answer would no longer be its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from random import Random

from bluelm_lightning.data.chat import IMAGE
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.synthesis.engines import Failed, TraceEngine
from bluelm_lightning.types import Generation, Message, Sample

_SLOT = "{question}"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Rewriter:
    """Says a question in other words. A subclass defines :meth:`rewrite`."""

    def rewrite(self, questions: Sequence[str], seeds: Sequence[int]) -> Sequence[str | Failed | None]:
        """Each question (without placeholders of pictures) in other words; Failed, or None, where there are none yet.

        Those are asked for again by the next call; an empty text is not.
        """
        raise TypeError(f"{type(self).__name__} must define rewrite(questions, seeds)")


class TemplateRewriter(Rewriter):
    """Puts the question into one of some templates, drawn by the seed.

    Args:
        templates: texts with ``{question}`` in them, once each.

    Raises:
        ConfigError: none, or one without ``{question}``.
    """

    def __init__(self, templates: list[str]) -> None:
        wrong = [template for template in templates if template.count(_SLOT) != 1]
        if wrong or not templates:
            raise ConfigError(f"{wrong[:1] or templates} needs {_SLOT} once in each template", "templates")
        self.templates = list(templates)

    def rewrite(self, questions: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [Random(f"rewrite {s}").choice(self.templates).replace(_SLOT, q) for q, s in zip(questions, seeds)]


class EngineRewriter(Rewriter):
    """Asks an engine.

    Args:
        engine: who is asked.
        instruction: what it is told, with ``{question}`` in it.
        sampling: how it draws; default: temperature 1, 256 tokens.

    Raises:
        ConfigError: an instruction without ``{question}``.
    """

    def __init__(
        self,
        engine: TraceEngine,
        instruction: str = (
            "Say this question in other words, so that its answer stays the same. Keep every number. "
            "Reply with the question alone.\n{question}"
        ),
        sampling: Sampling | None = None,
    ) -> None:
        if instruction.count(_SLOT) != 1:
            raise ConfigError(f"needs {_SLOT} once", "instruction")
        self.engine, self.instruction = engine, instruction
        self.sampling = sampling or Sampling(256, temperature=1.0)

    def rewrite(self, questions: Sequence[str], seeds: Sequence[int]) -> list[str | Failed | None]:
        asked = [Sample(str(n), "rewrite", [self._turn(question)]) for n, question in enumerate(questions)]
        replies = self.engine.write(asked, False, self.sampling, 1, seeds)
        return [reply.answer or "" if isinstance(reply, Generation) else reply for (reply,) in replies]

    def _turn(self, question: str) -> Message:
        return {"role": "user", "content": self.instruction.replace(_SLOT, question)}


def wordings(samples: Sequence[Sample], rewriter: Rewriter, seeds: Sequence[int]) -> list[str | Failed | None]:
    """The last question of each sample in other words.

    None where the text is empty, changes nothing or lost a number; Failed where there is no text.
    """
    old = [_question(sample).replace(IMAGE, "").strip() for sample in samples]
    new = rewriter.rewrite(old, seeds) if old else []
    return [_checked(before, text) for before, text in zip(old, new)]


def _checked(old: str, new: str | Failed | None) -> str | Failed | None:
    if not isinstance(new, str):
        return new or Failed("the rewriter gave no text")
    new = new.strip()
    return new if new and IMAGE not in new and new != old and keeps_numbers(old, new) else None


def reworded(sample: Sample, text: str) -> Sample:
    """The sample with another last question; placeholders of pictures go in front of it."""
    messages = deepcopy(sample.messages)
    place = _last_user(sample)
    messages[place]["content"] = IMAGE * messages[place]["content"].count(IMAGE) + text
    return replace(sample, messages=messages)


def keeps_numbers(old: str, new: str) -> bool:
    """Whether every number of the old text stands in the new one, as often at least."""
    return not Counter(_NUMBER.findall(old)) - Counter(_NUMBER.findall(new))


def _question(sample: Sample) -> str:
    return sample.messages[_last_user(sample)]["content"]


def _last_user(sample: Sample) -> int:
    return max(place for place, turn in enumerate(sample.messages) if turn["role"] == "user")
