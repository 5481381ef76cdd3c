"""Pictures of several handwritten digits, composed from real scans.

Source: the 1,797 scans of 8 x 8 pixels that ship with scikit-learn (``load_digits``, the test part of UCI
"Optical Recognition of Handwritten Digits"). Our choices: the split is by scan (80/20, stratified by digit, fixed
seed, identical scans kept once), so no test scan is ever seen in training; digits are dark ink on light paper, laid
in a row, a column, a block or scattered over the cells of a coarse grid, and read row by row from the top left.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache

import numpy as np

from bluelm_lightning.errors import ConfigError

SPLITS = ("train", "test")
LAYOUTS = ("row", "column", "block", "scattered")
CANVASES = ((64, 128), (128, 64), (128, 128))  # height, width; each larger than one 64 px tile
CELL = 32  # pixels; a digit's place, never cut by a 64 px tile
MAX_DIGITS = 8
SIZES = (24, 26, 28)  # pixels; below the cell, so digits never overlap
MAX_TURN, MAX_SLANT, MAX_STRETCH, MAX_BEND, MAX_BLEND = 0.12, 0.1, 0.08, 0.04, 0.3
JITTER = 2  # pixels; far below a row's height, so the reading order stays plain

Canvases = tuple[tuple[int, int], ...]  # (height, width) in pixels
Grid = tuple[int, int]  # rows, columns of cells


@cache
def scan_split(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scans of a split: ids int64[N], labels int64[N], ink float32[N, 8, 8] in [0, 1].

    Raises ConfigError: if `split` is neither train nor test.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is not one of {SPLITS}; name one of them")
    scans = load_digits()
    unique = np.sort(np.unique(scans.data, axis=0, return_index=True)[1])  # a scan stored twice must not straddle
    parts = train_test_split(unique, test_size=0.2, stratify=scans.target[unique], random_state=0)
    ids = np.sort(parts[SPLITS.index(split)])
    return ids, scans.target[ids], (scans.images[ids] / 16).astype(np.float32)


def _warp(rng: np.random.Generator) -> np.ndarray:
    """How a training scan is bent: float[2, 5], from (y, x, y*y, x*y, x*x) around the centre to a shift of (y, x)."""
    turn, slant = rng.uniform(-MAX_TURN, MAX_TURN), rng.uniform(-MAX_SLANT, MAX_SLANT)
    stretch = rng.uniform(-MAX_STRETCH, MAX_STRETCH, size=2)
    linear = [[stretch[0], turn], [slant - turn, stretch[1]]]
    return np.concatenate([linear, rng.uniform(-MAX_BEND, MAX_BEND, size=(2, 3))], axis=1)


def _ink(rng: np.random.Generator, split: str, scan: int, size: int) -> np.ndarray:
    """A scan at `size` pixels, bilinear: float32[size, size]. Training scans are few, so they come bent and blended."""
    from scipy.ndimage import map_coordinates

    _, labels, images = scan_split(split)
    image, middle = images[scan], 3.5
    places = (np.arange(size) + 0.5) * 8 / size - 0.5 - middle
    grid = np.stack(np.meshgrid(places, places, indexing="ij"))
    if split == "train":
        y, x = grid
        grid = grid + np.tensordot(_warp(rng), np.stack([y, x, y * y / middle, x * y / middle, x * x / middle]), 1)
        alike = np.flatnonzero(labels == labels[scan])
        share = rng.uniform(0, MAX_BLEND)
        image = (1 - share) * image + share * images[alike[rng.integers(len(alike))]]
    return map_coordinates(image, grid + middle, order=1, mode="nearest")


@cache
def _grids(num_digits: int, layout: str, height: int, width: int) -> tuple[Grid, ...]:
    """The grids of a layout that fit a canvas, and hold the digits."""
    n, half = num_digits, -(-num_digits // 2)
    high, wide = height // CELL, width // CELL
    shapes = {"row": [(1, n)], "column": [(n, 1)], "block": [(2, half), (half, 2)], "scattered": [(high, wide)]}[layout]
    return tuple((r, c) for r, c in shapes if r <= high and c <= wide and r * c >= n)


def _draw_grid(rng: np.random.Generator, num_digits: int, canvases: Canvases) -> tuple[int, int, Grid]:
    """Height, width and grid of a picture; a layout that does not fit its canvas is drawn again."""
    while True:  # ends: "scattered" fits every canvas that `pictures` accepts
        layout, (height, width) = LAYOUTS[rng.integers(len(LAYOUTS))], canvases[rng.integers(len(canvases))]
        if grids := _grids(num_digits, layout, height, width):
            return height, width, grids[rng.integers(len(grids))]


def _boxes(rng: np.random.Generator, num_digits: int, canvases: Canvases) -> tuple[int, int, np.ndarray]:
    """Height and width of a picture, and its boxes int[num_digits, 3] (top, left, size) in reading order."""
    height, width, (rows, cols) = _draw_grid(rng, num_digits, canvases)
    spots = np.sort(rng.permutation(rows * cols)[:num_digits])
    start = CELL * np.array([rng.integers(height // CELL - rows + 1), rng.integers(width // CELL - cols + 1)])
    sizes = np.asarray(SIZES)[rng.integers(len(SIZES), size=num_digits)]
    slack = (CELL - sizes)[:, None] // 2
    shift = np.clip(rng.integers(-JITTER, JITTER + 1, size=(num_digits, 2)), -slack, slack)
    corners = np.stack([spots // cols, spots % cols], axis=1) * CELL + start + slack + shift
    return height, width, np.concatenate([corners, sizes[:, None]], axis=1)


def _paint(rng: np.random.Generator, split: str, scans: np.ndarray, canvases: Canvases) -> bytes:
    """PNG bytes of an RGB picture of the scans (positions in the split), in reading order."""
    from PIL import Image

    height, width, boxes = _boxes(rng, len(scans), canvases)
    paper, ink = int(rng.integers(200, 246)), int(rng.integers(10, 81))
    # Grain of 4 x 4 pixels: noise in every pixel would triple the file and the time to write it.
    grain = rng.integers(-5, 6, size=(height // 4, width // 4)).repeat(4, axis=0).repeat(4, axis=1)
    canvas = (paper + grain).astype(np.float32)
    for scan, (top, left, size) in zip(scans, boxes.tolist()):
        canvas[top : top + size, left : left + size] -= (paper - ink) * _ink(rng, split, scan, size)
    grey = canvas.clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def pictures(
    split: str, count: int, seed: int, stream: int, low: int, high: int, canvases: Canvases = CANVASES
) -> Iterator[tuple]:
    """Yields (generator, digits list[int], scan ids list[int], PNG bytes); picture i does not depend on `count`."""
    if not 1 <= low <= high <= MAX_DIGITS:
        raise ConfigError(f"{low} to {high} digits asked, a picture holds 1 to {MAX_DIGITS}; change num_digits")
    room = min((height // CELL) * (width // CELL) for height, width in canvases)
    if high > room:
        raise ConfigError(f"{high} digits asked, the smallest canvas holds {room}; change num_digits or canvases")
    ids, labels, _ = scan_split(split)
    for index in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), stream, index))
        scans = rng.integers(len(ids), size=int(rng.integers(low, high + 1)))
        yield rng, labels[scans].tolist(), ids[scans].tolist(), _paint(rng, split, scans, canvases)
