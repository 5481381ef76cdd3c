"""A picture as it is shown: its size, how it is cut into tiles, and bytes that a browser can draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple

from bluelm_lightning.data.image_bytes import sniff
from bluelm_lightning.data.images import decode_image, image_size
from bluelm_lightning.data.tiling import Grid, choose_grid, fit_size
from bluelm_lightning.errors import DataError

_SMALL = 128  # pixels a side up to which the picture is embedded as it is, without loss
_LARGE = 800  # pixels a side that an embedded picture has at most


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut. Defaults: the report's tiles of 378 px, up to 4 x 4; thumbnail as in BlueLM-V-3B."""

    tile_size: int = 378
    max_grid: int = 4
    thumbnail: bool = True


class Rect(NamedTuple):
    """A rectangle in pixels of the picture; it may reach over its edges, where the canvas is padding."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class PictureView:
    """One picture of a sample. What cannot be read has a ``problem`` and no size."""

    num_bytes: int
    format: str  # "PNG" | "JPEG" | "WEBP" | "?"
    width: int = 0  # pixels, upright
    height: int = 0
    grid: Grid = field(default=Grid(1, 1))
    tile_size: int = 0  # pixels
    thumbnail: bool = False  # one tile more, with the whole picture, before the others
    canvas: Rect = field(default=Rect(0, 0, 0, 0))  # what all tiles cover together
    tiles: list[Rect] = field(default_factory=list)  # row by row, without the thumbnail
    problem: str = ""

    @property
    def num_tiles(self) -> int:
        """As `data.tiling.count_tiles`."""
        return len(self.tiles) + self.thumbnail


def view_picture(data: bytes, tiling: Tiling) -> PictureView:
    """Size and tiles of an encoded picture, from its header alone."""
    form = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}.get(sniff(data) or "", "?")
    try:
        width, height = image_size(data)
        grid = choose_grid(width, height, tiling.tile_size, tiling.max_grid)
    except DataError as error:
        return PictureView(len(data), form, problem=error.reason)
    canvas, tiles = tile_rectangles(width, height, grid, tiling.tile_size)
    thumbnail = tiling.thumbnail and len(tiles) > 1
    return PictureView(len(data), form, width, height, grid, tiling.tile_size, thumbnail, canvas, tiles)


def tile_rectangles(width: int, height: int, grid: Grid, tile_size: int) -> tuple[Rect, list[Rect]]:
    """Where `data.tiling.tile_image` cuts a picture of ``width x height`` pixels, in the picture's own pixels.

    Returns:
        the canvas, which the tiles cover together, and the tiles, row by row. The picture lies on the canvas at (0, 0);
        ``x`` and ``y`` of the canvas are negative where it is padded on the left and above.
    """
    fit_w, fit_h = fit_size(width, height, grid, tile_size)
    left, top = (grid.cols * tile_size - fit_w) // 2, (grid.rows * tile_size - fit_h) // 2
    x_scale, y_scale = width / fit_w, height / fit_h  # not equal to the last digit: each side is rounded by itself
    tiles = [
        Rect(
            (col * tile_size - left) * x_scale,
            (row * tile_size - top) * y_scale,
            tile_size * x_scale,
            tile_size * y_scale,
        )
        for row in range(grid.rows)
        for col in range(grid.cols)
    ]
    return Rect(tiles[0].x, tiles[0].y, grid.cols * tiles[0].width, grid.rows * tiles[0].height), tiles


def embedded(data: bytes) -> tuple[str, bytes]:
    """(media type, bytes) of a picture for a page: upright, on white, at most 800 pixels a side.

    Raises:
        DataError: the picture cannot be decoded, for the reason that training would give.
    """
    from PIL import Image

    picture = Image.fromarray(decode_image(data).permute(1, 2, 0).numpy())
    out = BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(out, "PNG")
        return "image/png", out.getvalue()
    picture.thumbnail((_LARGE, _LARGE))
    picture.save(out, "JPEG", quality=85)
    return "image/jpeg", out.getvalue()
