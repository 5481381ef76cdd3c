"""Pictures: opened whole or not at all, the filter on them, and the code by which like pictures are found."""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Dropped, Filter
from bluelm_lightning.data.image_bytes import MAX_PIXELS, grey_to_8_bits, upright
from bluelm_lightning.errors import ConfigError, DataError

SIDE, FINE = 16, 64  # of the thumbnails that are a picture's code
_FORMATS = ("PNG", "JPEG", "WEBP")


def open_picture(data: bytes) -> Image.Image:
    """Every pixel decoded, turned upright, RGB with alpha over white.

    Raises:
        DataError: damaged, cut, no picture, or one of more than `MAX_PIXELS` pixels.
    """
    try:
        picture: Image.Image = Image.open(BytesIO(data), formats=_FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise DataError(f"is {picture.width} x {picture.height}, more than {MAX_PIXELS} pixels; make it smaller")
        if picture.format == "PNG":  # decoding passes over wrong checksums
            picture.verify()
            picture = Image.open(BytesIO(data), formats=_FORMATS)
        picture = upright(picture)
        if picture.mode.startswith(("I", "F")):
            picture = grey_to_8_bits(picture)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture.convert("RGBA"))
            picture = white
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format
        raise DataError(f"is damaged ({type(error).__name__}: {error})"[:200]) from error


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header says. Raises DataError where there is none."""
    try:
        return Image.open(BytesIO(data), formats=_FORMATS).size
    except Exception as error:
        raise DataError(f"is no picture ({type(error).__name__}: {error})"[:200]) from error


class PictureCode(NamedTuple):
    """What pictures are compared by."""

    coarse: np.ndarray  # uint8[16 * 16 * 3], a smoothed thumbnail
    fine: np.ndarray  # uint8[64 * 64], one in grey levels


def picture_code(data: bytes) -> PictureCode:
    """Two thumbnails: by the coarse one like pictures are found, by the fine one they are told apart.

    Re-encoding and resizing move the coarse one by a few levels: on 1,000 of easy-VQA's pictures JPEG of quality 75,
    sizes of 0.75 to 2 and both together moved it by at most 4.0 (root mean square over all values), while 3,992 of the
    4,000 pictures are further than 5.0 from every other one. Two pages of print are nearer than that; their details
    differ.

    Raises:
        DataError: as `open_picture`.

    Source: our choice; a 64-bit hash of the same pictures' low frequencies differed by up to 18 bits for re-encoded
    ones and by at most 4 for 6,371 pairs of different ones.
    """
    picture = open_picture(data)
    coarse = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).reshape(-1)
    fine = picture.resize((FINE, FINE), Image.Resampling.BILINEAR).convert("L")
    return PictureCode(coarse, np.asarray(fine).reshape(-1))


def same_details(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """bool[M]: whether two fine thumbnails, uint8[M, 64 * 64] each, show the same details.

    Details are what a thumbnail holds besides its means over 4 x 4 values. They are the same when they correlate by 0.8
    or differ by no more than 2.5 levels (what an encoder leaves on an even picture). Measured: among 30 pages of random
    print in one layout no two correlate by more than 0.71, and copies of them as JPEG, halved or both by at least 0.99;
    easy-VQA's pictures, re-encoded and resized by 0.75 to 2, all pass. Source: our choice.
    """
    parts = [_same(left[at : at + 512], right[at : at + 512]) for at in range(0, len(left), 512)]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def like_details(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool[M, N]: pairs of fine thumbnails that may show the same details; none that do is missing.

    One product of matrices: where many thumbnails meet many, it is quicker than `same_details` by far.
    """
    one, other = _details(some), _details(others)
    energy, energies = np.einsum("ij,ij->i", one, one)[:, None], np.einsum("ij,ij->i", other, other)[None]
    product = one @ other.T
    return (product >= 0.79 * np.sqrt(energy * energies)) | (energy + energies - 2 * product <= 2.6**2 * FINE**2)


def _same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    one, other = (_details(fine) for fine in (left, right))
    alike = np.einsum("ij,ij->i", one, other)
    energy = [np.einsum("ij,ij->i", part, part) for part in (one, other, one - other)]
    return (alike >= 0.8 * np.sqrt(energy[0] * energy[1])) & (alike > 0) | (energy[2] <= 2.5**2 * FINE**2)


def _details(fine: np.ndarray) -> np.ndarray:
    blocks = fine.reshape(len(fine), SIDE, FINE // SIDE, SIDE, FINE // SIDE).astype(np.float32)
    return (blocks - blocks.mean((2, 4), keepdims=True)).reshape(len(fine), FINE * FINE)


class PictureFilter(Filter):
    """Drops records with a picture that is damaged, too small or large, too long, or empty. Texts pass.

    Args:
        min_side: pixels of the shorter side.
        max_pixels: of a picture, width times height.
        max_aspect: longer side over shorter side.
        min_entropy: bits of the histogram of grey levels, which are 0 for one colour and at most 8; a small shape of
            one colour on another has about 0.12.
    """

    version = 3

    def __init__(
        self, min_side: int = 28, max_pixels: int = 50_000_000, max_aspect: float = 8.0, min_entropy: float = 0.05
    ) -> None:
        if max_aspect < 1:
            raise ConfigError(f"{max_aspect} is below 1; a square has 1", "max_aspect")
        self.min_side, self.max_pixels, self.max_aspect, self.min_entropy = (
            min_side,
            max_pixels,
            max_aspect,
            min_entropy,
        )

    def process(self, record: Record) -> Record | Dropped:
        for number, data in enumerate(record.images()):
            why = self._look(data)
            if why:
                return Dropped(why.reason, f"picture {number}: {why.detail}")
        return record

    def _look(self, data: bytes) -> Dropped | None:
        try:
            width, height = picture_size(data)  # of the header: no pixel of a picture that goes anyhow is decoded
            why = self._measure(width, height)
            if why:
                return why
            entropy = open_picture(data).convert("L").entropy()
        except DataError as error:
            return Dropped("damaged picture", error.reason)
        if entropy < self.min_entropy:
            return Dropped("empty picture", f"entropy {entropy:.3f} bits, at least {self.min_entropy:g}")
        return None

    def _measure(self, width: int, height: int) -> Dropped | None:
        short, long = sorted((width, height))
        size = f"{width} x {height}"
        if short < self.min_side:
            return Dropped("picture too small", f"{size}, at least {self.min_side} a side")
        if short * long > min(self.max_pixels, MAX_PIXELS):
            return Dropped("picture too large", f"{size}, at most {min(self.max_pixels, MAX_PIXELS)} pixels")
        if long > self.max_aspect * short:
            return Dropped("picture too long", f"{size}, at most {self.max_aspect:g} to 1")
        return None
