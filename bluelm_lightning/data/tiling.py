"""Pictures of any size -> square tiles of one size (AnyRes). Pure functions, integer arithmetic.

    image uint8[3, H, W] -> choose_grid -> resize (aspect kept) -> centred on a canvas of rows x cols tiles -> split

Shapes: N tiles, S tile side in pixels, H and W the picture's sides, R rows and C columns of the grid.
Words: effective area Re = pixels of the resized picture, never counted above those it had (enlarging adds nothing);
wasted area Rw = canvas pixels - Re.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bluelm_lightning.errors import ConfigError, DataError

PAD_VALUE = 127  # middle grey: about 0 after SigLIP's normalisation to [-1, 1]


class Grid(NamedTuple):
    """How many tiles a picture is cut into. ``Grid(rows=1, cols=4)`` for a 3024 x 756 panorama."""

    rows: int
    cols: int


@lru_cache(maxsize=64)
def _grids(max_grid: int, max_tiles: int | None) -> tuple[Grid, ...]:
    """All grids allowed, most tiles first, the squarest first among equals, wide before tall."""
    if max_grid < 1:
        raise ConfigError(f"{max_grid} tiles a side leave no grid; use at least 1", key="max_grid")
    if max_tiles is not None and max_tiles < 1:
        raise ConfigError(f"{max_tiles} tiles leave no grid; use at least 1, or null for no bound", key="max_tiles")
    sides = range(1, max_grid + 1)
    grids = [Grid(r, c) for r in sides for c in sides if max_tiles is None or r * c <= max_tiles]
    return tuple(sorted(grids, key=lambda g: (-g.rows * g.cols, abs(g.rows - g.cols), g.rows)))


def fit_size(width: int, height: int, grid: Grid, tile_size: int) -> tuple[int, int]:
    """Size at which a picture fills the canvas of ``grid`` on one side and fits on the other, aspect ratio kept.

    Small pictures are enlarged. One rule holds for odd shapes: each side is at least 1 px and at most the canvas, so
    1 x 20000 becomes 1 x 1512 on four rows of 378 px, never anything larger than the canvas.

    Returns:
        (width, height) in pixels, rounded half up.

    Source: LLaVA-NeXT's resize-and-pad, which BlueLM-V-3B starts from; the clamp is our choice.
    """
    canvas_w, canvas_h = grid.cols * tile_size, grid.rows * tile_size
    if width * canvas_h >= height * canvas_w:  # the picture is wider than the canvas: width decides
        return canvas_w, min(canvas_h, max(1, (2 * height * canvas_w + width) // (2 * width)))
    return min(canvas_w, max(1, (2 * width * canvas_h + height) // (2 * height))), canvas_h


@lru_cache(maxsize=4096)  # 12 us without the cache, 0.1 us when the size was seen before
def choose_grid(
    width: int, height: int, tile_size: int, max_grid: int = 4, alpha: float = 0.1, max_tiles: int | None = None
) -> Grid:
    """Grid for a picture by relaxed aspect-ratio matching: few tiles, unless more of them show over 10 % more of it.

    Grids are tried by descending number of tiles. A grid becomes the best if Re - Re_best > alpha * Re_best, or if
    Re_best - Re < alpha * Re_best and Rw < Rw_best. Descending means that the walk begins at the largest canvas and
    steps down as long as a step costs less than alpha of the pixels: 1512 x 1512 stays at 4 x 4 of 378 px (nothing is
    wasted there), 64 x 64 walks down to 1 x 1. Steps add up: the pixels kept were never under 0.81 of the most
    possible over 20000 random sizes (ascending order: 0.909, for 0.4 % more tiles).

    Args:
        width, height: of the picture, pixels.
        tile_size: S, pixels.
        max_grid: most rows and most columns.
        alpha: share of pixels one step may cost, in [0, 1), rounded to 1/1000 so that only integers are compared.
        max_tiles: bound on rows * cols; the thumbnail comes on top of it.

    Raises:
        DataError: if a side of the picture is below 1 px.
        ConfigError: if tile_size, max_grid or max_tiles is below 1 or alpha is outside [0, 1).

    Source: BlueLM-V-3B, relaxed aspect-ratio matching; "descending" by number of tiles is our reading.
    """
    if width < 1 or height < 1:
        raise DataError(f"picture of {width} x {height} pixels; both sides need at least 1")
    if tile_size < 1:
        raise ConfigError(f"{tile_size} pixels make no tile; use the side the vision encoder takes", key="tile_size")
    if not 0 <= alpha < 1:
        raise ConfigError(f"{alpha} is not a share of pixels; use a number in [0, 1), the report has 0.1", key="alpha")
    share, area = round(alpha * 1000), width * height
    best, best_re, best_rw = Grid(1, 1), 0, 0
    for grid in _grids(max_grid, max_tiles):
        fit_w, fit_h = fit_size(width, height, grid, tile_size)
        re = min(fit_w * fit_h, area)
        rw = grid.rows * grid.cols * tile_size * tile_size - re
        gain = 1000 * (re - best_re)
        if gain > share * best_re or (-gain < share * best_re and rw < best_rw):
            best, best_re, best_rw = grid, re, rw
    return best


def count_tiles(
    width: int,
    height: int,
    tile_size: int,
    max_grid: int = 4,
    thumbnail: bool = True,
    alpha: float = 0.1,
    max_tiles: int | None = None,
) -> int:
    """Number N of tiles that ``tile_image`` makes of a picture of this size, thumbnail included; touches no pixels."""
    rows, cols = choose_grid(width, height, tile_size, max_grid, alpha, max_tiles)
    return rows * cols + (thumbnail and rows * cols > 1)


def tile_image(
    image: Tensor,
    tile_size: int,
    max_grid: int = 4,
    thumbnail: bool = True,
    pad_value: int = PAD_VALUE,
    alpha: float = 0.1,
    max_tiles: int | None = None,
) -> Tensor:
    """Cut a picture into tiles: the thumbnail first (the whole picture in one tile), then row by row.

    The picture is resized to ``fit_size``, centred on the canvas (an odd pixel of padding goes right or below) and
    split. A 1 x 1 grid has no thumbnail, which would be the same tile twice.

    Args:
        image: uint8[3, H, W]; memory laid out as [H, W, 3], as ``decode_image`` returns it, resizes fastest.
        pad_value: 0 to 255, for all three channels.
        tile_size, max_grid, alpha, max_tiles: see ``choose_grid``.
        thumbnail: the report does not say whether 2.5 has it; BlueLM-V-3B does.

    Returns:
        uint8[N, 3, S, S], contiguous. It may share memory with ``image`` when nothing had to be done.

    Raises:
        DataError: if the image is not uint8[3, H, W] or has a side below 1 px.
        ConfigError: see ``choose_grid``.

    Source: AnyRes tiles and thumbnail as BlueLM-V-3B; bicubic, centring and grey padding are our choice.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise DataError(f"image is {image.dtype}{list(image.shape)}, not uint8[3, H, W]; decode it with decode_image")
    height, width = image.shape[1:]
    grid = choose_grid(width, height, tile_size, max_grid, alpha, max_tiles)
    tiles = _split(_letterbox(image, grid, tile_size, pad_value), grid, tile_size)
    if thumbnail and len(tiles) > 1:
        tiles = torch.cat([_letterbox(image, Grid(1, 1), tile_size, pad_value)[None], tiles])
    return tiles.contiguous()


def _letterbox(image: Tensor, grid: Grid, tile_size: int, pad_value: int) -> Tensor:
    """uint8[3, H, W] -> uint8[3, R * S, C * S]: resized with its aspect ratio and centred on ``pad_value``."""
    old_h, old_w = image.shape[1:]
    canvas_w, canvas_h = grid.cols * tile_size, grid.rows * tile_size
    width, height = fit_size(old_w, old_h, grid, tile_size)
    if (width, height) != (old_w, old_h):
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        image = resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)
    if (width, height) == (canvas_w, canvas_h):
        return image
    top, left = (canvas_h - height) // 2, (canvas_w - width) // 2
    canvas = image.new_full((3, canvas_h, canvas_w), pad_value)
    canvas[:, top : top + height, left : left + width] = image
    return canvas


def _split(canvas: Tensor, grid: Grid, tile_size: int) -> Tensor:
    """uint8[3, R * S, C * S] -> uint8[R * C, 3, S, S], row by row."""
    if grid == (1, 1):
        return canvas[None]
    rows = canvas.reshape(3, grid.rows, tile_size, grid.cols, tile_size)
    return rows.permute(1, 3, 0, 2, 4).reshape(-1, 3, tile_size, tile_size)
