"""Packing: several documents in a row, chosen to leave little padding, in an order that a resume repeats exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import IGNORE, Encoded, PackedBatch


def choose_rows(
    lengths: Sequence[int], tiles: Sequence[int], rows: int, row_tokens: int, max_tiles: int | None = None
) -> list[list[int]]:
    """Which pending documents go into which row: best fit, the oldest document first, then the longest that fits.

    Args:
        lengths: tokens of each pending document, oldest first; none above ``row_tokens``.
        tiles: tiles of each.
        rows: rows of the batch.
        row_tokens: capacity of a row.
        max_tiles: capacity of the batch in tiles.

    Returns:
        For each row the chosen documents. The oldest is always among them, so that nothing waits forever.
    """
    left_tiles = max_tiles if max_tiles is not None else sum(tiles)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    used = [False] * len(lengths)
    chosen: list[list[int]] = []
    oldest = 0
    for _ in range(rows):
        row: list[int] = []
        space = row_tokens
        while oldest < len(lengths) and used[oldest]:
            oldest += 1
        candidates = [oldest, *order] if oldest < len(lengths) else []
        for i in candidates:
            if not used[i] and lengths[i] <= space and tiles[i] <= left_tiles:
                used[i] = True
                row.append(i)
                space -= lengths[i]
                left_tiles -= tiles[i]
        chosen.append(sorted(row))
    return chosen


def pack(rows: Sequence[Sequence[Encoded]], row_tokens: int, pad_id: int, cursor: int = 0) -> PackedBatch:
    """Lay documents out in rows. Positions restart at each document; a row's rest is padding, without loss.

    Raises:
        ConfigError: a row holds more than ``row_tokens``.
    """
    shape = (len(rows), row_tokens)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1, dtype=torch.long)
    bounds, docs = [0], [doc for row in rows for doc in row]
    image_positions, number = [], 0
    for r, row in enumerate(rows):
        start = 0
        for doc in row:
            end = start + len(doc)
            if end > row_tokens:
                raise ConfigError(f"sample {doc.id} ends at token {end} of a row of {row_tokens}", "data.row_tokens")
            ids[r, start:end], labels[r, start:end] = doc.ids, doc.labels
            positions[r, start:end] = torch.arange(len(doc))
            segments[r, start:end] = number
            image_positions.append(doc.image_positions + r * row_tokens + start)
            bounds.append(r * row_tokens + end)
            start, number = end, number + 1
        if start < row_tokens:
            positions[r, start:] = torch.arange(row_tokens - start)
            bounds.append((r + 1) * row_tokens)
    tiles = [doc.tiles for doc in docs if len(doc.tiles)]
    return PackedBatch(
        ids=ids,
        labels=labels,
        positions=positions,
        segments=segments,
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        max_seqlen=max((b - a for a, b in pairwise(bounds)), default=0),
        tiles=torch.cat(tiles) if tiles else docs[0].tiles if docs else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
        image_positions=torch.cat(image_positions) if docs else torch.empty(0, dtype=torch.long),
        tile_segments=torch.repeat_interleave(
            torch.arange(len(docs)), torch.tensor([len(doc.tiles) for doc in docs], dtype=torch.long)
        ),
        sample_ids=[doc.id for doc in docs],
        sources=[doc.source for doc in docs],
        cursor=cursor,
    )


def split_text(doc: Encoded, row_tokens: int) -> list[Encoded]:
    """A long text without pictures as pieces of at most ``row_tokens``; every token keeps its label."""
    pieces = zip(doc.ids.split(row_tokens), doc.labels.split(row_tokens))
    return [
        Encoded(f"{doc.id}#{n}", doc.source, ids, labels, doc.tiles, doc.image_positions)
        for n, (ids, labels) in enumerate(pieces)
    ]
