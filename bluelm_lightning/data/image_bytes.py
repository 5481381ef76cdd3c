"""Pictures as data sets hold them -> encoded bytes, PNG, JPEG or WebP.

A value is a path (relative to a root), a base64 data URI, raw bytes, a ``{"bytes": ..., "path": ...}`` of Hugging Face
`datasets`, or a PIL image. Bytes in the three formats pass untouched; others (GIF, BMP, TIFF) become PNG, first frame.
"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import DataError

MAX_PIXELS = 1 << 27  # 134 million; more is taken for a decompression bomb, and only headers were read by then
_ORIENTATION = 0x0112  # EXIF tag


def sniff(data: bytes) -> str | None:
    """The extension that the first bytes call for: ``png``, ``jpg``, ``webp``, or None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def image_bytes(value: Any, root: Path, where: str) -> bytes:
    """Encoded bytes of one picture.

    Raises:
        DataError: naming `where`: no such file, a URL, base64 that is none, bytes that no decoder knows, another type.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, str):
        value = _from_data_uri(value, where) if value.startswith("data:") else _from_file(value, root, where)
    if isinstance(value, bytes):
        return value if sniff(value) else _as_png(_open(value, where), where)
    if hasattr(value, "save") and hasattr(value, "convert"):  # a PIL image, without importing PIL to know it
        return _as_png(value, where)
    raise DataError(f"is of type {type(value).__name__}; give a path, a data URI, bytes or a PIL image", where)


def take_images(record: dict[str, Any], root: Path, where: str, key: str | None = None) -> list[bytes]:
    """Removes a record's pictures and returns their bytes, in order.

    They are under `key`, or under ``images`` or ``image`` (one or a list), or inside OpenAI's parts of the messages.

    Raises:
        DataError: naming `where` and the field; also when pictures stand in more than one of these places.
    """
    found = {name: record.pop(name) for name in ([key] if key else ["images", "image"]) if name in record}
    found["messages"] = _in_parts(record.get("messages"))
    lists = {n: v if isinstance(v, list | tuple) else [v] for n, v in found.items() if v is not None and v != []}
    if len(lists) > 1:
        raise DataError(f"has images in {' and '.join(lists)}; keep one", where)
    return [image_bytes(v, root, f"{where}: {name}[{i}]") for name, some in lists.items() for i, v in enumerate(some)]


def _in_parts(messages: Any) -> list[Any]:
    """``{"type": "image_url", "image_url": {"url": X}}`` or ``{"type": "image", "image": X}`` -> X."""
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    images = [part for part in parts if isinstance(part, dict) and part.get("type") in ("image", "image_url")]
    return [value for part in images if (value := part.get("image_url") or part.get("image")) is not None]


def _from_data_uri(uri: str, where: str) -> bytes:
    head, _, body = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("no ';base64,' in it")
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise DataError(f"is a broken data URI: {error}; write data:image/png;base64,...", where) from error


def _from_file(path: str, root: Path, where: str) -> bytes:
    if "://" in path:
        raise DataError(f"is a URL: {path}; download it and give the path", where)
    try:
        return (root / path).read_bytes()
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read: {root / path}: {reason}; set image_root to its folder", where) from error


def _open(data: bytes, where: str) -> Any:
    from PIL import Image

    try:
        return Image.open(BytesIO(data))
    except Exception as error:  # PIL raises many kinds
        raise DataError(f"no picture: {len(data)} bytes that begin with {data[:12]!r}; leave it out", where) from error


def _as_png(image: Any, where: str) -> bytes:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"is {width} x {height}, more than {MAX_PIXELS} pixels; make it smaller", where)
    out = BytesIO()
    try:
        image = upright(image)  # a PNG of ours carries no EXIF
        if image.mode.startswith(("I", "F")) and image.mode != "I;16":
            image = grey_to_8_bits(image)
        elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            image = image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")
        image.save(out, "PNG")
    except DataError as error:
        raise DataError(error.reason, where) from error
    except Exception as error:
        raise DataError(f"cannot be decoded: {error}; leave it out or save it again", where) from error
    return out.getvalue()


def orientation(picture: Any) -> int:
    """1 for an upright PIL image, 2 to 8 for one that is stored mirrored or turned, from 5 on with its sides swapped.

    What Pillow has read so far says it, and a PNG may keep its EXIF behind its pixels: `upright` loads them first.
    """
    from PIL import Image

    try:
        return int(Image.Image.getexif(picture).get(_ORIENTATION, 1))  # a PNG's own getexif() decodes the pixels
    except Exception:  # damaged EXIF beside good pixels
        return 1


def upright(picture: Any) -> Any:
    """A PIL image as its EXIF orientation shows it; the image itself where that is damaged, unknown or absent."""
    from PIL.Image import Transpose as T

    picture.load()
    turns = [T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90]
    turn = orientation(picture)
    if not 2 <= turn <= 8:
        return picture
    turned = picture.transpose(turns[turn - 2])
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # or it would be turned again
        turned.info.pop(key, None)
    return turned


def grey_to_8_bits(picture: Any) -> Any:
    """16-bit grey PIL image -> 8 bits. Pillow's own conversion clips: all above 255 would be white.

    Raises:
        DataError: pixels of 32 bits.
    """
    import numpy as np
    from PIL import Image

    values = np.array(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        name = f"{picture.format or 'the'} image"
        raise DataError(f"{name} has pixels of 32 bits (mode {picture.mode}); store 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
