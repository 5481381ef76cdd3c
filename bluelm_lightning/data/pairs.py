"""Preference pairs: one question, an answer that is preferred and one that is not, as neighbours in a packed row.

A record holds the conversation up to the question, and the answers as texts or as ``{"content", "thinking"}``,
read as any assistant's turn is::

    {"messages": [{"role": "user", "content": "Is it safe?"}], "chosen": "No, because ...", "rejected": "Sure."}
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.turns import parse_turn
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Encoded, Message, Sample

CHOSEN, REJECTED = "chosen", "rejected"


@dataclass
class EncodedPair(Encoded):
    """Both conversations; its own ids and tiles are those of both together, so that it is packed as one."""

    parts: tuple[Encoded, ...] = ()


class PairEncoder(Encoder):
    """Encodes the two conversations of a preference."""

    def __call__(self, sample: Sample, cut: float | None = None, stated: float | None = None) -> EncodedPair:
        """Both conversations, with labels on the answers.

        Raises:
            DataError: naming the sample: an answer is missing or is no text, or as :class:`Encoder`.
        """
        both = [super(PairEncoder, self).__call__(_answered(sample, key), cut, stated) for key in (CHOSEN, REJECTED)]
        first = both[0]
        ids, labels, tiles = (torch.cat([getattr(p, key) for p in both]) for key in ("ids", "labels", "tiles"))
        return EncodedPair(first.id, first.source, ids, labels, tiles, first.image_positions, tuple(both))

    @staticmethod
    def without_traces(sample: Sample) -> Sample:
        """Neither answer thinks, nor any turn before them."""
        answers = {key: {"content": answer_of(sample, key)["content"]} for key in (CHOSEN, REJECTED)}
        return replace(Encoder.without_traces(sample), meta={**sample.meta, **answers})


def _answered(sample: Sample, key: str) -> Sample:
    messages = list(sample.messages)
    if not messages or messages[-1]["role"] != "user":
        reason = "a preference ends with the user's turn; the answers stand beside it"
        raise DataError(reason, sample.where or sample.id)
    return replace(sample, messages=[*messages, answer_of(sample, key)])


def answer_of(sample: Sample, key: str) -> Message:
    """An answer of a preference as an assistant's turn.

    Raises:
        DataError: naming sample and key: it is missing or is no turn.
    """
    where, given = sample.where or sample.id, sample.meta.get(key)
    reply = {"content": given} if isinstance(given, str) else given
    if not isinstance(reply, dict):
        raise DataError(f"{key} is {given!r}; write the answer as a text or as content and thinking", where)
    return parse_turn({**reply, "role": "assistant"}, f"{where}: {key}")


def parts_of(document: Encoded) -> tuple[Encoded, ...]:
    """What is laid out as documents of their own: the two of a pair, else the document itself."""
    return getattr(document, "parts", ()) or (document,)
