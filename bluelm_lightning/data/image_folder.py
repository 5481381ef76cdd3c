"""A folder of pictures -> pre-training documents ``<image>caption``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bluelm_lightning.data.image_bytes import image_bytes
from bluelm_lightning.data.records import load_json, parse_record
from bluelm_lightning.data.rows import json_rows
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTIONS = ("filename", "folder", "txt", "jsonl")
METADATA = "metadata.jsonl"


def from_image_folder(folder: str | Path, caption: str = "filename", source: str | None = None) -> Iterator[Sample]:
    """Every picture under a folder with its caption.

    Args:
        folder: searched with its subfolders.
        caption: ``filename`` (``red_circle.png`` -> "red circle"), ``folder`` (name of the picture's folder), ``txt``
            (a text file of the same name), or ``jsonl`` (``metadata.jsonl`` as in Hugging Face's image folders: records
            in any dialect of `records`, with the picture under ``file_name``).
        source: name for all samples; default: the folder's name.

    Raises:
        ConfigError: no folder, no picture in it, no metadata.jsonl, or another word for `caption`.
        DataError: for one picture, naming it: no caption, a picture that is none, a line without its picture.
    """
    folder = Path(folder)
    if caption not in CAPTIONS:
        raise ConfigError(f"{caption!r} is not one of {', '.join(CAPTIONS)}", "caption")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not pictures:
        reason = "holds no pictures" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {reason}; give a folder of pictures")
    reader = _Reader(folder, caption, source or folder.resolve().name)
    # map, not a generator: the next call goes on after `read` has raised
    return map(reader.read, reader.with_metadata(pictures) if caption == "jsonl" else pictures)


class _Reader:
    def __init__(self, folder: Path, caption: str, source: str) -> None:
        self.folder, self.caption, self.source = folder, caption, source
        self.seen: set[Path] = set()

    def with_metadata(self, pictures: list[Path]) -> Iterator[Any]:
        """The lines of metadata.jsonl, then the pictures that no line has named."""
        if not (self.folder / METADATA).is_file():
            raise ConfigError(f"{self.folder} has no {METADATA}; write one, or choose another caption", "caption")
        lines = json_rows(self.folder / METADATA)
        return (item for items in (lines, (p for p in pictures if p not in self.seen)) for item in items)

    def read(self, item: Any) -> Sample:
        if not isinstance(item, Path):
            return self._line(*item)
        where = str(item.relative_to(self.folder))
        if self.caption == "jsonl":
            raise DataError(f"no line of {METADATA} has this file_name; add one", where)
        record = {"text": "<image>" + self._caption(item, where)}
        return parse_record(record, [image_bytes(item.name, item.parent, where)], where, where, self.source)

    def _line(self, number: int, line: bytes) -> Sample:
        where = f"{METADATA}:{number}"
        record = load_json(line, where) if isinstance(line, bytes) else line
        name = record.pop("file_name", None) if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise DataError('has no file_name; write {"file_name": "a.png", "text": ...}', where)
        self.seen.add(self.folder / name)
        return parse_record(record, [image_bytes(name, self.folder, f"{where}: file_name")], where, name, self.source)

    def _caption(self, picture: Path, where: str) -> str:
        if self.caption == "folder":
            return picture.parent.resolve().name
        if self.caption == "filename":
            return " ".join(picture.stem.replace("_", " ").replace("-", " ").split())
        try:
            text = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"its caption cannot be read: {picture.stem}.txt: {reason}; write it", where) from error
        if not text:
            raise DataError(f"its caption is empty: {picture.stem}.txt; write it", where)
        return text
