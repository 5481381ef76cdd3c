"""A sample as it is shown: turns, documents of tokens with their loss mask, pictures with their tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bluelm_lightning.data.pairs import CHOSEN, REJECTED, answer_of
from bluelm_lightning.errors import DataError
from bluelm_lightning.inspection.pictures import PictureView, view_picture
from bluelm_lightning.inspection.reading import Reading, is_preference, mode_of
from bluelm_lightning.inspection.tokens import DocumentView, view_document
from bluelm_lightning.types import Encoded, Sample


@dataclass
class TurnView:
    """One turn, or one of the two answers of a preference."""

    role: str  # "system" | "user" | "assistant" | "text" | "chosen" | "rejected"
    text: str
    thinking: str = ""


@dataclass
class SampleView:
    """All that is shown of one sample."""

    id: str
    source: str
    task: str
    where: str  # "train-000003.tar:000123"
    mode: str  # see `reading.mode_of`
    turns: list[TurnView]
    documents: list[DocumentView]  # empty without a tokenizer, and where it cannot be encoded
    pictures: list[PictureView]
    images: list[bytes] = field(repr=False)  # as they are stored, beside `pictures`
    answer: str | None = None  # the reference
    meta: dict[str, Any] = field(default_factory=dict)  # what else the record holds
    problem: str = ""  # why training would leave it out
    note: str = ""  # what training would do with it, as cutting it

    @property
    def num_tiles(self) -> int:
        return sum(picture.num_tiles for picture in self.pictures)


def view_of(
    sample: Sample, reading: Reading, encoded: list[tuple[str, Encoded]], problem: str = "", note: str = ""
) -> SampleView:
    """Makes the view of a sample.

    Args:
        sample: as a source returns it.
        reading: the settings.
        encoded: ``reading.documents(sample)``.
        problem: why training would leave it out.
        note: what else is to be said.
    """
    documents = [
        view_document(title, document, reading.encoder.tokenizer, reading.special)
        for title, document in encoded
        if reading.encoder is not None
    ]
    return SampleView(
        id=sample.id,
        source=sample.source,
        task=sample.task,
        where=sample.where,
        mode=mode_of(sample),
        turns=turns_of(sample),
        documents=documents,
        pictures=[view_picture(data, reading.tiling) for data in sample.images],
        images=sample.images,
        answer=sample.answer,
        meta={key: value for key, value in sample.meta.items() if not (is_preference(sample) and key in _ANSWERS)},
        problem=problem,
        note=note,
    )


_ANSWERS = (CHOSEN, REJECTED)


def turns_of(sample: Sample) -> list[TurnView]:
    """The turns in order; a text is one turn, and a preference ends with its two answers."""
    if sample.text is not None:
        return [TurnView("text", sample.text)]
    turns = [TurnView(turn["role"], turn["content"], turn.get("thinking") or "") for turn in sample.messages]
    if is_preference(sample):
        turns += [_answer(key, sample) for key in _ANSWERS]
    return turns


def _answer(role: str, sample: Sample) -> TurnView:
    """An answer of a preference; what cannot be read as one is shown as it stands."""
    try:
        turn = answer_of(sample, role)
        return TurnView(role, turn["content"], turn.get("thinking") or "")
    except DataError:
        given = sample.meta[role]
        return TurnView(role, given if isinstance(given, str) else repr(given))
