"""Token ids of a document as readable stretches, each with its place in the loss mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bluelm_lightning.types import IGNORE, Encoded

_LONGEST = 64  # tokens in which a decoder that is true to its text comes to the end of some character


@dataclass(frozen=True)
class TokenView:
    """One token, or the few that share a character, or all that stand for one run of tiles.

    Of tokens that share a character, some may be learnt and some not: then the learnt ones hold it, the others no text.
    """

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
    for kind, group in groupby(zip(ids, kinds, learnt), lambda token: token[1]):
        run = [(token, labelled) for token, _, labelled in group]
        if kind == "special":
            yield from (TokenView((token,), _decode(tokenizer, [token]), kind, labelled) for token, labelled in run)
        elif kind == "image":
            yield from _by_label("<image>", run, kind)
        else:
            start = 0
            for count, text in _characters([token for token, _ in run], tokenizer):
                yield from _by_label(text, run[start : start + count], kind)
                start += count


def _by_label(text: str, run: list[tuple[int, bool]], kind: str) -> Iterator[TokenView]:
    """The tokens of one stretch, those with one label together."""
    mixed = len({labelled for _, labelled in run}) > 1
    for labelled, group in groupby(run, lambda token: token[1]):
        shown = text if labelled or not mixed or kind == "image" else ""
        text = "" if mixed and labelled and kind != "image" else text  # it is shown once
        yield TokenView(tuple(token for token, _ in group), shown, kind, labelled)


def _characters(ids: list[int], tokenizer: Any) -> Iterator[tuple[int, str]]:
    """Numbers of tokens with their text. Those that hold bytes of one character together come together.

    Each is decoded behind the ones before it: a SentencePiece decoder would drop the space before a lone token.
    A stretch ends where what is decoded so far is the beginning of the whole text, and the next one has a text too.
    """
    whole = _decode(tokenizer, ids)
    before, start, end, at = 0, 0, 0, 0  # of the stretch before, of this one; ``at``: characters of both and all before
    held = (0, "")
    while end < len(ids) and end - start < _LONGEST:
        end += 1
        known, text = _decode(tokenizer, ids[before:start]), _decode(tokenizer, ids[before:end])
        new = text[len(known) :]
        if not (text.startswith(known) and whole.startswith(new, at)):
            continue
        if new and held[1]:
            yield held
            held, before = (0, ""), start
        held = (held[0] + end - start, held[1] + new)
        start, at = end, at + len(new)
    if start < len(ids):  # a decoder that looks further ahead: the rest is one stretch
        held = (held[0] + len(ids) - start, held[1] + whole[at:])
    if held[0]:
        yield held


def _decode(tokenizer: Any, ids: list[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return tokenizer.decode(ids, **options) if ids else ""
