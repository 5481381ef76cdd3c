"""Encoded picture bytes -> uint8 RGB tensor, or a DataError that says why not.

Everything goes through Pillow. torchvision's decoders are quicker (a 64 x 64 PNG in 28 us against 61 us here, a
1512 x 1512 JPEG in 8.1 ms against 11.0 ms), but one wrong bit in a PNG's pixels ends the process with a segmentation
fault (torchvision 0.29.2: 150 of 151 damaged copies of one file), which no worker survives; and they are deprecated.

What cannot be seen: JPEG and WebP carry no checksum, so flipped bytes inside them decode to a wrong picture.
"""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from bluelm_lightning.data.image_bytes import grey_to_8_bits, orientation, upright
from bluelm_lightning.errors import ConfigError, DataError

# Not all that Pillow knows: EPS would start Ghostscript on bytes from the net. JPEG covers MPO, the .jpg of phones.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as ``decode_image`` will return it (EXIF turn included), read from the header only.

    A turn that a PNG states behind its pixels is not seen.

    Raises:
        DataError: if the bytes are empty or do not begin like a picture. A cut file may pass: only its head is read.
    """
    with _open(data) as picture:
        width, height = picture.size
        swapped = picture.format != "TIFF" and 5 <= orientation(picture) <= 8  # Pillow has swapped a TIFF's sides
        return (height, width) if swapped else (width, height)


def decode_image(data: bytes, max_pixels: int = 50_000_000) -> Tensor:
    """Decode PNG, JPEG, WebP, GIF (first frame), BMP, TIFF, PPM or AVIF bytes.

    EXIF orientation is applied, alpha is laid over white, grey becomes three equal channels, 16 bits the upper 8.

    Args:
        data: the whole file.
        max_pixels: bound on width * height, checked on the header before any pixel is decoded: a PNG of 40 KB can claim
            144 megapixels.

    Returns:
        uint8[3, H, W], with memory laid out as [H, W, 3] (not contiguous): ``tile_image`` resizes that 5 times faster.

    Raises:
        DataError: if the bytes are empty, no picture, too large, truncated or damaged. The caller adds ``where``.
        ConfigError: if another library has told Pillow to accept truncated files.

    Source: our choice.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # would turn the missing part of a cut file grey, without a word
        flag = "PIL.ImageFile.LOAD_TRUNCATED_IMAGES"
        raise ConfigError(f"{flag} is True and would hide cut pictures; set it to False after the import that set it")
    with _open(data) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise DataError(
                f"image claims {width} x {height} = {width * height} pixels, the limit is {max_pixels}; "
                "shrink the image or raise max_pixels"
            )
        if data.startswith(_PNG_MAGIC):
            _check_png(data)
        try:
            pixels = np.array(_to_rgb(upright(picture)))
        except DataError:
            raise
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format
            reason = f"{picture.format} image of {len(data)} bytes is truncated or damaged"
            raise DataError(f"{reason} ({type(error).__name__}: {error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of ``_FORMATS`` that this Pillow was built with: ``Image.open`` ends in a KeyError over others."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    """Read the header. No pixel is decoded."""
    if not data:
        raise DataError("image is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:  # Pillow's own limit, 179 megapixels, comes before ours
        raise DataError(f"image is too large: {error}") from error
    except Exception as error:
        head = f"image of {len(data)} bytes beginning with {data[:8]!r}"
        raise DataError(f"{head} is no picture in {', '.join(_formats())}, or is cut inside its header") from error


def _check_png(data: bytes) -> None:
    """Compare the checksums of the pixel chunks, which Pillow skips: a zeroed block would decode to wrong colours."""
    start, kind, view = len(_PNG_MAGIC), b"", memoryview(data)
    while kind != b"IEND" and start + 12 <= len(data):
        kind, end = data[start + 4 : start + 8], start + 8 + int.from_bytes(data[start : start + 4])
        stored = data[end : end + 4]  # shorter where the file is cut, which Pillow reports
        if kind == b"IDAT" and len(stored) == 4 and zlib.crc32(view[start + 4 : end]) != int.from_bytes(stored):
            where = f"bytes {start} to {end + 4}"
            raise DataError(f"PNG image of {len(data)} bytes is damaged: wrong checksum of {where}")
        start = end + 4


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB."""
    if picture.mode.startswith(("I", "F")):
        return grey_to_8_bits(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # convert() would copy every pixel
