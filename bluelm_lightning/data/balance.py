"""Batches whose tiles are even over processes: every process waits for the one with the most pictures.

Each process steers its own batches to the mean tiles per token of what waits with it. All processes draw from one
mixture, so their means agree within chance, and nothing need be sent or saved: a resume chooses the same documents.
"""

from __future__ import annotations

from collections.abc import Sequence

LOOKAHEAD = 4.0  # times the usual: the mean over what waits must change slowly


def choose_balanced(
    lengths: Sequence[int], tiles: Sequence[int], rows: int, row_tokens: int, max_tiles: int | None = None
) -> list[list[int]]:
    """Which pending documents go into which row; arguments and result as :func:`choose_rows`.

    The oldest document always goes in. After it a document is taken from those with more, or with less, than the mean
    tiles per token, whichever the batch lacks: the longest that fits, and that does not lift the batch over its share.
    """
    if not lengths:
        return [[] for _ in range(rows)]
    mean = sum(tiles) / sum(lengths)
    most = max(tiles[0], round(mean * rows * row_tokens))
    if max_tiles is not None:
        most = min(most, max_tiles)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    heavy = [i for i in order if tiles[i] > mean * lengths[i]]
    light = [i for i in order if tiles[i] <= mean * lengths[i]]
    used: set[int] = set()
    chosen: list[list[int]] = []
    taken_tokens = taken_tiles = 0
    for _ in range(rows):
        row: list[int] = []
        space = row_tokens
        while True:
            lacks = taken_tiles < mean * taken_tokens
            candidates = [*heavy, *light] if lacks else [*light, *heavy]
            if not used:
                candidates = [0]
            fits = (i for i in candidates if i not in used and lengths[i] <= space and taken_tiles + tiles[i] <= most)
            found = next(fits, None)
            if found is None:
                break
            used.add(found)
            row.append(found)
            space -= lengths[found]
            taken_tokens += lengths[found]
            taken_tiles += tiles[found]
        chosen.append(sorted(row))
    return chosen
