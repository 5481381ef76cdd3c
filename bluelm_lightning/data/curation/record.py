"""A sample under way between two steps: its JSON, and where its pictures lie.

A part is a file of JSON lines; pictures stay in the file that collection wrote them to, and every later step only
refers to them, so a corpus of pictures is on disk once::

    {"data": {"id": "q7", "source": "vqa", "messages": [...]}, "pictures": [["01_Collect/part-00000.bin", 512, 410]]}
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bluelm_lightning.data.chat import IMAGE
from bluelm_lightning.data.records import RESERVED
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample

# vowel signs and the like, which \w leaves out: without them words of Hindi or Arabic would be others. BMP alone;
# variation selectors are none.
MARKS = "".join(letter for letter in map(chr, range(0x300, 0xFE00)) if unicodedata.category(letter).startswith("M"))
_NOT_WORD, _NOT_ASCII_WORD = re.compile(rf"(?:[^\w{MARKS}]|_)+"), re.compile(r"[\W_]+")


class Picture(NamedTuple):
    """Encoded bytes inside a file of the pipeline's folder."""

    file: str  # relative to the folder, "01_CollectJson/part-00000.bin"
    offset: int
    size: int


@dataclass(slots=True)
class Record:
    """What a step sees of a sample."""

    data: dict[str, Any]  # as `records.to_record` writes it: id, source, text or messages, task, answer, and the rest
    pictures: list[Picture] = field(default_factory=list)
    root: Path = Path()  # the folder that the pictures' files begin in

    @property
    def id(self) -> str:
        return str(self.data.get("id", ""))

    @property
    def source(self) -> str:
        return str(self.data.get("source", ""))

    def texts(self) -> list[str]:
        """The document, or every turn and its thinking, without the places of pictures."""
        if self.data.get("text") is not None:
            found = [self.data["text"]]
        else:
            turns = self.data.get("messages") or ()
            found = [text for turn in turns for text in (turn.get("thinking"), turn["content"]) if text]
        return [text.replace(IMAGE, "") for text in found] if self.pictures else found

    @property
    def text(self) -> str:
        return "\n".join(self.texts())

    def images(self) -> list[bytes]:
        """Encoded bytes of every picture. Raises DataError if a file of the pipeline was cut or removed."""
        return [read_bytes(os.path.join(self.root, picture.file), picture) for picture in self.pictures]

    def to_sample(self) -> Sample:
        """Unchecked: whoever writes it to a shard checks it."""
        given = {key: self.data[key] for key in RESERVED if self.data.get(key) is not None and key != "conversations"}
        meta = {key: value for key, value in self.data.items() if key not in RESERVED}
        return Sample(**given, images=self.images(), where=f"{self.source or 'record'} {self.id}", meta=meta)

    def to_line(self) -> bytes:
        """One line of a part. Raises DataError for what is not JSON."""
        try:
            value = {"data": self.data, "pictures": self.pictures} if self.pictures else {"data": self.data}
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise DataError(f"cannot be written as JSON: {error}; convert it", f"sample {self.id}") from error


def from_line(line: bytes, root: Path) -> Record:
    """The record of one line that `Record.to_line` wrote."""
    held = json.loads(line)
    return Record(held["data"], [Picture(*one) for one in held.get("pictures", ())], root)


def read_lines(path: Path, root: Path) -> Iterator[tuple[bytes, Record]]:
    """Every line of a part, as it stands and as a record."""
    with open(path, "rb", buffering=1 << 20) as file:
        for line in file:
            yield line, from_line(line, root)


@lru_cache(maxsize=256)
def _opened(path: str) -> Any:
    return open(path, "rb")


def close_files() -> None:
    """Forget what was opened: another run may have written other files under the same names."""
    _opened.cache_clear()


def read_bytes(path: str, picture: Picture) -> bytes:
    """One positioned read. Raises DataError if the file was cut or removed."""
    try:
        data = os.pread(_opened(path).fileno(), picture.size, picture.offset)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}; run the pipeline again with --redo", path) from error
    if len(data) != picture.size:
        raise DataError(f"ends inside a picture at byte {picture.offset}; run the pipeline again with --redo", path)
    return data


def fold(text: str) -> str:
    """Compatibility forms, case, punctuation and spaces folded: ``"Is it  RED?"`` -> ``"is it red"``.

    Marks are composed with their letters; those that stay, such as vowel signs, are parts of words.
    """
    if text.isascii():
        return _NOT_ASCII_WORD.sub(" ", text.casefold()).strip()
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
