"""Is an answer right, and which samples of held-out sources to ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bluelm_lightning.types import Generation, Sample, Source


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


def spread(sources: Sequence[Source], count: int) -> Iterator[Sample]:
    """``count`` samples in all, as many of each source as of any other, at even distances within a source.

    A source that holds several tasks one after the other shows all of them; the choice never changes.
    """
    for number, source in enumerate(sources):
        wanted = min(len(source), count // len(sources) + (number < count % len(sources)))
        yield from (source[n * len(source) // wanted] for n in range(wanted))
