"""Is an answer right, and which samples of held-out sources to ask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Encoded, Generation, Sample, Source

log = logging.getLogger(__name__)


def exact_match(answer: str | None, reference: str) -> bool:
    """Equal after lower-casing and dropping spaces at the ends and a final full stop. No answer is never right."""
    return answer is not None and _plain(answer) == _plain(reference)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()


def is_right(sample: Sample, made: Generation) -> bool:
    """Whether what was made equals the reference: ``answer``, else the last turn of the model in the sample."""
    turns = [turn["content"] for turn in sample.messages if turn["role"] == "assistant"]
    return exact_match(made.answer, sample.answer if sample.answer is not None else turns[-1])


def can_be_asked(sample: Sample) -> bool:
    """A conversation with a reference."""
    replied = any(turn["role"] == "assistant" for turn in sample.messages)
    return bool(sample.messages) and (sample.answer is not None or replied)


def spread_prompts(
    sources: Sequence[Source], count: int, encode: Callable[[Sample], Encoded]
) -> Iterator[tuple[Sample, Encoded]]:
    """At most ``count`` conversations in all, as many of each source as of any other, at even distances within it.

    A source that holds several tasks one after the other shows all of them; the choice never changes. One whose first
    64 samples hold no conversation is left out, and so are samples that cannot be read.
    """
    asked = [source for source in sources if _holds_questions(source)]
    for number, source in enumerate(asked):
        wanted = min(len(source), count // len(asked) + (number < count % len(asked)))
        for place in range(wanted):
            try:
                sample = source[place * len(source) // wanted]
                if can_be_asked(sample):
                    yield sample, encode(sample)
            except DataError as error:
                log.warning("not asked: %s", error)


def _holds_questions(source: Source) -> bool:
    for index in range(min(len(source), 64)):
        try:
            if can_be_asked(source[index]):
                return True
        except DataError:
            continue
    return False
