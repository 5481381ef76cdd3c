"""Token ids of a document as readable stretches, each with its place in the loss mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bluelm_lightning.types import IGNORE, Encoded

_LONGEST = 4  # bytes of a character in UTF-8: so many tokens may share one
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TokenView:
    """One token, or the few that share a character, or all that stand for one run of tiles."""

    ids: tuple[int, ...]
    text: str  # "<image>" for image tokens
    kind: str  # "text" | "special" | "image"
    labelled: bool  # these tokens are learnt: the label of the position before them is their id


@dataclass
class DocumentView:
    """One row of tokens that training makes of a sample: the sample itself, or one side of a preference."""

    title: str  # "sample" | "prompt" | "chosen" | "rejected"
    tokens: list[TokenView]
    num_tokens: int
    num_labelled: int
    num_image: int


def view_document(title: str, encoded: Encoded, tokenizer: Any, special: frozenset[int]) -> DocumentView:
    """An encoded document, decoded token by token.

    Args:
        title: what it is called.
        encoded: ids int64[T]; its labels are shifted: ``labels[t]`` speaks of ``ids[t + 1]``.
        tokenizer: decodes.
        special: ids that are special tokens.
    """
    labels = encoded.labels.tolist()
    learnt = [False, *(label != IGNORE for label in labels[:-1])]
    image = set(encoded.image_positions.tolist())
    tokens = list(_views(encoded.ids.tolist(), learnt, image, tokenizer, special))
    return DocumentView(title, tokens, len(labels), sum(learnt), len(image))


def _views(
    ids: list[int], learnt: list[bool], image: set[int], tokenizer: Any, special: frozenset[int]
) -> Iterator[TokenView]:
    kinds = ["image" if at in image else "special" if token in special else "text" for at, token in enumerate(ids)]
    for (kind, labelled), group in groupby(zip(ids, kinds, learnt), lambda token: token[1:]):
        run = [token for token, _, _ in group]
        if kind == "image":
            yield TokenView(tuple(run), "<image>", kind, labelled)
        elif kind == "special":
            yield from (TokenView((token,), _decode(tokenizer, [token]), kind, labelled) for token in run)
        else:
            yield from (TokenView(tuple(some), text, kind, labelled) for some, text in _characters(run, tokenizer))


def _characters(ids: list[int], tokenizer: Any) -> Iterator[tuple[list[int], str]]:
    """Tokens with their text. Those that hold bytes of one character together come together.

    Each is decoded behind the one before it: a SentencePiece decoder would drop the space before a token that is alone.
    """
    before, start = 0, 0
    for end in range(1, len(ids) + 1):
        known, text = _decode(tokenizer, ids[before:start]), _decode(tokenizer, ids[before:end])
        if text.endswith(_BROKEN) and end - start < _LONGEST and end < len(ids):
            continue
        yield ids[start:end], text[len(known) :]
        before, start = start, end


def _decode(tokenizer: Any, ids: list[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return tokenizer.decode(ids, **options) if ids else ""
