"""Like pictures among many, by their codes: all pairs within a distance, without comparing all pairs.

A code is projected on fixed orthonormal directions: the slow waves over the picture of brightness and of two colours. A
projection never lengthens a distance, so like pictures lie in the same or in neighbouring cells of a grid over the
first five of them, and those that all of them together put further apart need not be compared: nothing is missed. What
is near by its coarse code must show the same details, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from bluelm_lightning.data.curation.pictures import SIDE, PictureCode, like_details, same_details

_AXES = 5  # of the grid
_CHUNK = 1 << 19  # pairs looked at at a time
_FINE_CHUNK = 1 << 11  # the same of whole codes
_CROWD = 256  # pictures of a cell from which on products of blocks are quicker than pairs
_OFFSET, _BASE = 1 << 11, 1 << 12  # cells on either side of the middle, and of an axis


class PictureGrid:
    """Codes that can be asked for their neighbours.

    Args:
        codes: uint8[N, 768], the coarse ones of `picture_code`.
        fine: numbers int64[M] of codes -> uint8[M, 4096], the fine ones, which may be on disk.
        max_rms: root mean square difference of two codes, in levels of 255, up to which pictures are alike.
    """

    def __init__(self, codes: np.ndarray, fine: Callable[[np.ndarray], np.ndarray], max_rms: float) -> None:
        self.codes, self.fine, self.max_rms = codes, fine, max_rms
        self._radius = max_rms * SIDE * 3**0.5  # a distance, not a mean
        self._places = _project(codes)
        self._cells = self._cell(self._places)
        keys = _key(self._cells)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def near(self, code: PictureCode) -> list[tuple[int, float]]:
        """``(number, rms)`` of every like picture, the nearest first; rms of the coarse codes."""
        if not len(self.codes):
            return []
        keys = _key(self._cell(_project(code.coarse[None])) + _STEPS)
        starts, stops = (np.searchsorted(self._sorted, keys, side) for side in ("left", "right"))
        found = [self._order[a:b] for a, b in zip(starts, stops) if b > a]
        if not found:
            return []
        numbers = np.sort(np.concatenate(found))
        rms = _rms(self.codes[numbers], code.coarse[None])
        numbers, rms = numbers[rms <= self.max_rms], rms[rms <= self.max_rms]
        likely = like_details(code.fine[None], self.fine(numbers))[0]
        numbers, rms = numbers[likely], rms[likely]
        alike = same_details(np.broadcast_to(code.fine, (len(numbers), len(code.fine))), self.fine(numbers))
        alikes = zip(numbers[alike].tolist(), rms[alike].tolist())
        return sorted(alikes, key=lambda one: (one[1], one[0]))

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """int64[M], int64[M]: all pairs i < j of like pictures, in chunks."""
        first = np.flatnonzero(np.diff(self._sorted, prepend=self._sorted[:1] - 1))  # of each cell that is not empty
        last = np.append(first[1:], len(self._sorted))
        cells = self._cells[self._order[first]]
        for step in _STEPS[len(_STEPS) // 2 :]:  # the middle one and half of the others: each pair once
            keys = _key(cells + step)
            starts, stops = (np.searchsorted(self._sorted, keys, side) for side in ("left", "right"))
            crowded = (last - first) * (stops - starts) > _CROWD**2
            for n in np.flatnonzero(crowded).tolist():
                yield from self._crowd(self._order[first[n] : last[n]], self._order[starts[n] : stops[n]])
            sizes = np.where(crowded, 0, last - first)
            rows = self._order[np.flatnonzero(np.repeat(~crowded, last - first))]
            for place, right in _expand(np.repeat(starts, sizes), np.repeat(stops, sizes), self._order):
                yield from self._alike(rows[place], right)

    def _crowd(self, some: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Like pairs between two cells of many pictures, or within one: blocks of products say which are likely."""
        for left in np.split(some, range(_CROWD, len(some), _CROWD)):
            coarse, fine = self.codes[left].astype(np.float32), self.fine(left)
            for right in np.split(others, range(_CROWD, len(others), _CROWD)):
                codes = self.codes[right].astype(np.float32)
                squares = (coarse**2).sum(1)[:, None] + (codes**2).sum(1)[None] - 2 * coarse @ codes.T
                near = squares <= (self._radius * 1.01 + 4) ** 2  # and the error of float32
                if near.any():
                    one, other = np.nonzero(near & like_details(fine, self.fine(right)))
                    yield from self._alike(left[one], right[other])

    def _alike(self, left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of candidates, those that are alike. A pair of one cell comes twice, and each picture with itself."""
        apart = self._places[left] - self._places[right]
        close = np.einsum("ij,ij->i", apart, apart) <= (self._radius * 1.001) ** 2  # and the error of float32
        close &= (left < right) | (self._cells[left] != self._cells[right]).any(1)
        left, right = np.minimum(left, right)[close], np.maximum(left, right)[close]
        for at in range(0, len(left), _FINE_CHUNK):
            one, other = left[at : at + _FINE_CHUNK], right[at : at + _FINE_CHUNK]
            near = _rms(self.codes[one], self.codes[other]) <= self.max_rms
            one, other = one[near], other[near]
            alike = same_details(self.fine(one), self.fine(other))
            yield one[alike], other[alike]

    def _cell(self, places: np.ndarray) -> np.ndarray:
        width = max(self._radius, 4.0)  # a wider cell misses nothing, and all cells have a number
        return np.floor(places[:, :_AXES] / width).astype(np.int64)


def _directions() -> np.ndarray:
    """float32[768, 18], orthonormal columns: waves of 0 to 2 half periods, of brightness and of two colours."""
    waves = np.cos(np.pi * np.arange(3)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    grey, red, green = np.array([1, 1, 1]) / 3**0.5, np.array([1, 0, -1]) / 2**0.5, np.array([1, -2, 1]) / 6**0.5
    flat = [(0, 0, red), (0, 0, green)]
    slow = [(0, 0, grey), (0, 1, grey), (1, 0, grey), *flat, (1, 1, grey), (0, 2, grey), (2, 0, grey)]
    slow += [
        (down, right, colour) for colour in (red, green) for down, right in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
    ]
    parts = [np.einsum("i,j,k->ijk", waves[down], waves[right], colour) for down, right, colour in slow]
    return np.stack([part.reshape(-1) for part in parts], 1).astype(np.float32)


_DIRECTIONS = _directions()
_STEPS = np.array(list(product((-1, 0, 1), repeat=_AXES)), dtype=np.int64)


def _project(codes: np.ndarray) -> np.ndarray:
    """uint8[N, 768] -> float32[N, 18]."""
    places = [codes[at : at + 4096].astype(np.float32) @ _DIRECTIONS for at in range(0, len(codes), 4096)]
    return np.concatenate(places) if places else np.zeros((0, _DIRECTIONS.shape[1]), np.float32)


def _key(cells: np.ndarray) -> np.ndarray:
    """int64[N, 5] -> int64[N], one number a cell."""
    shifted, key = np.clip(cells + _OFFSET, 0, _BASE - 1), np.zeros(len(cells), np.int64)
    for axis in range(_AXES):
        key = key * _BASE + shifted[:, axis]
    return key


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
