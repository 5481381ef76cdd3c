"""Like pictures among many, by their codes: all pairs within a distance, without comparing all pairs.

A code is projected on four fixed orthonormal directions (mean brightness, its slope from left to right and from top to
bottom, red against blue). A projection never lengthens a distance, so pictures within `radius` lie in the same or in
neighbouring cells of a grid of that width: nothing is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from bluelm_lightning.data.curation.pictures import SIDE

_CHUNK = 200_000  # pairs compared at a time: 768 bytes each
_OFFSET, _BASE = 1 << 13, 1 << 15  # cells are at most 255 * 28 / 1 in number to either side


class PictureGrid:
    """Codes that can be asked for their neighbours.

    Args:
        codes: uint8[N, 768] of `picture_code`.
        max_rms: root mean square difference of two codes, in levels of 255, up to which pictures are alike.
    """

    def __init__(self, codes: np.ndarray, max_rms: float) -> None:
        self.codes, self.max_rms = codes, max_rms
        self._cells = self._cell(codes)
        keys = _key(self._cells)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def near(self, code: np.ndarray) -> list[tuple[int, float]]:
        """``(number, rms)`` of every code within `max_rms`, the nearest first."""
        if not len(self.codes):
            return []
        keys = _key(self._cell(code[None]) + _STEPS)
        starts, stops = (np.searchsorted(self._sorted, keys, side) for side in ("left", "right"))
        found = [self._order[a:b] for a, b in zip(starts, stops) if b > a]
        if not found:
            return []
        numbers = np.sort(np.concatenate(found))
        rms = _rms(self.codes[numbers], code[None])
        alike = np.flatnonzero(rms <= self.max_rms)
        return sorted(((int(numbers[i]), float(rms[i])) for i in alike), key=lambda one: (one[1], one[0]))

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """int64[M], int64[M]: all pairs i < j within `max_rms`, in chunks."""
        for step in _STEPS:
            keys = _key(self._cells + step)
            starts, stops = (np.searchsorted(self._sorted, keys, side) for side in ("left", "right"))
            for left, right in _expand(starts, stops, self._order):
                once = left < right
                left, right = left[once], right[once]
                alike = _rms(self.codes[left], self.codes[right]) <= self.max_rms
                yield left[alike], right[alike]

    def _cell(self, codes: np.ndarray) -> np.ndarray:
        width = self.max_rms * SIDE * 3**0.5  # a distance, not a mean
        places = [codes[at : at + 4096].astype(np.float32) @ _DIRECTIONS for at in range(0, len(codes), 4096)]
        projected = np.concatenate(places) if places else np.zeros((0, _DIRECTIONS.shape[1]), np.float32)
        return np.floor(projected / max(width, 1.0)).astype(np.int64)


def _directions() -> np.ndarray:
    """float32[768, 4], orthonormal columns."""
    wave = np.cos(np.pi * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
    wave /= np.linalg.norm(wave)
    flat = np.full(SIDE, SIDE**-0.5)
    grey, chroma = np.full(3, 3**-0.5), np.array([1, 0, -1]) * 2**-0.5
    parts = [(flat, flat, grey), (flat, wave, grey), (wave, flat, grey), (flat, flat, chroma)]
    return np.stack([np.einsum("i,j,k->ijk", *part).reshape(-1) for part in parts], 1).astype(np.float32)


_DIRECTIONS = _directions()
_STEPS = np.array(list(product((-1, 0, 1), repeat=4)), dtype=np.int64)


def _key(cells: np.ndarray) -> np.ndarray:
    """int64[N, 4] -> int64[N], one number a cell."""
    shifted = np.clip(cells + _OFFSET, 0, _BASE - 1)
    return ((shifted[:, 0] * _BASE + shifted[:, 1]) * _BASE + shifted[:, 2]) * _BASE + shifted[:, 3]


def _rms(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    difference = left.astype(np.float32) - right.astype(np.float32)
    return np.sqrt(np.einsum("ij,ij->i", difference, difference) / difference.shape[1])


def _expand(starts: np.ndarray, stops: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row n and each of ``order[starts[n]:stops[n]]``, some `_CHUNK` at a time."""
    counts = stops - starts
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        here = counts[first:last]
        left = np.repeat(np.arange(first, last), here)
        within = np.arange(int(here.sum())) - np.repeat(np.cumsum(here) - here, here)
        yield left, order[np.repeat(starts[first:last], here) + within]
        first = last
