"""What the model sees: tokens of a packed batch with the loss mask in colour."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from bluelm_lightning.types import IGNORE, PackedBatch

_TRAINED, _PLAIN, _RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"


def preview_batch(batch: PackedBatch, tokenizer: Any, documents: int = 2, color: bool = True) -> str:
    """The first documents of a batch, decoded. Green tokens carry loss, grey ones do not; image tokens are counted.

    Without ``color`` trained stretches stand between ``«`` and ``»``.
    """
    ids, labels, segments = batch.ids.flatten().tolist(), batch.labels.flatten().tolist(), batch.segments.flatten()
    lines = []
    for doc in range(min(documents, len(batch.sample_ids))):
        places = (segments == doc).nonzero().flatten().tolist()
        # labels[t] belongs to the token after t: that token is the one trained on
        trained = [False] + [labels[t] != IGNORE for t in places[:-1]]
        image = set(batch.image_positions.tolist())
        text = "".join(_stretches(places, trained, ids, image, tokenizer, color))
        lines.append(f"[{batch.sources[doc]} {batch.sample_ids[doc]}, {len(places)} tokens]\n{text}")
    return "\n".join(lines)


def _stretches(
    places: list[int], trained: list[bool], ids: list[int], image: set[int], tokenizer: Any, color: bool
) -> Iterator[str]:
    marks = {True: (_TRAINED, _RESET), False: (_PLAIN, _RESET)} if color else {True: ("«", "»"), False: ("", "")}
    for (with_loss, is_image), group in groupby(zip(places, trained), lambda pair: (pair[1], pair[0] in image)):
        stretch = [ids[place] for place, _ in group]
        before, after = marks[with_loss]
        yield before + (f"<image x {len(stretch)}>" if is_image else tokenizer.decode(stretch)) + after
