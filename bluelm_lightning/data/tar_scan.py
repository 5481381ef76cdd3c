"""The headers of a tar shard: which bytes belong to which sample, and whether the tar is whole.

A sample is a run of neighbouring members with one key, as in webdataset: ``KEY.json`` (or ``KEY.txt``) and pictures
``KEY.0.png``, ``KEY.1.jpg``, ... or ``KEY.jpg``; the key ends at the first dot of the file's name. Members of other
kinds are never read. webdataset stops without a word at a damaged header; here that is an error.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from bluelm_lightning.errors import DataError

IMAGE_SUFFIX = re.compile(r"(?:(\d+)\.)?(?:png|jpe?g|webp|gif|bmp|tiff?)")
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's own rules for key and suffix, and for what to skip
_META = re.compile(r"__[^/]*__($|/)")
_USED = re.compile(r"json|txt|(?:.*\.)?(?:png|jpe?g|webp|gif|bmp|tiff?)")
_BLOCK = 512


class Scan:
    """One pass over the headers of a tar.

    Attributes:
        spans: for each key, the first byte of its headers and the first byte after its data.
        digest: sha256 of every member's name, size, place and time.

    Raises:
        DataError: naming the byte and how many samples could be read: no tar at all, a cut, a damaged or zeroed header,
            no end-of-archive marker; or, naming the member: a link, or a key that comes back after another one.
    """

    def __init__(self, tar: Path) -> None:
        self.spans: dict[str, tuple[int, int]] = {}
        self._where, self._key, self._whole = str(tar), "", set[str]()
        digest, end = hashlib.sha256(), 0
        with open(tar, "rb") as file:
            num_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            for member, stop in _headers(file):
                if stop > num_bytes:
                    self._whole.discard((split_name(member.name) or ("",))[0])
                    self._fail(f"it ends at byte {num_bytes}, inside {member.name}")
                self._add(member, stop)
                digest.update(repr((member.name, member.size, member.offset, member.mtime)).encode(errors="replace"))
                end = stop
            problem = _ending(file, end)
        if problem:
            self._fail(problem)
        self.digest = digest.hexdigest()

    def _add(self, member: tarfile.TarInfo, stop: int) -> None:
        used = split_name(member.name)
        if used is None or member.isdir():
            return
        key, suffix = used
        where = f"{self._where}:{member.name}"
        if not member.isreg() or member.issparse():
            raise DataError("is a link or a sparse file; pack with tar -h --hard-dereference", where)
        if key != self._key and key in self.spans:
            raise DataError(f"key {key} came before; members of a sample are neighbours: use tar --sort=name", where)
        self.spans[key] = (self.spans.get(key, (member.offset,))[0], stop)
        self._key = key
        if suffix in ("json", "txt"):
            self._whole.add(key)

    def _fail(self, problem: str) -> None:
        whole = f"{len(self._whole)} whole samples stand before that place"
        raise DataError(f"the tar is damaged: {problem}; {whole}. Copy it again, or leave it out", self._where)


def split_name(name: str) -> tuple[str, str] | None:
    """``a/000123.0.PNG`` -> (``a/000123``, ``0.png``); None for members that are no part of a sample."""
    match = None if _META.match(name) else _NAME.fullmatch(name)
    suffix = match[2].lower() if match else ""
    return (match[1], suffix) if match and _USED.fullmatch(suffix) else None


def members(blob: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """The bytes of one span -> its key, and the data of each member by suffix.

    Raises:
        DataError: naming `where`: these bytes are not what the index promised, or two members have one name.
    """
    key, found = "", dict[str, bytes]()
    entries, end = _entries(blob)
    for name, data in entries:
        if used := split_name(name):
            if used[1] in found:
                raise DataError(f"two members are named {name}; pack the shard again", where)
            key, found[used[1]] = used[0], data
    if end != len(blob) or not found:
        raise DataError("the tar is damaged, or changed since it was indexed; restore it or delete its index", where)
    return key, found


def _entries(blob: bytes) -> tuple[list[tuple[str, bytes]], int]:
    """Name and data of each file in a span, and where reading stopped; tarfile, five times slower, gets odd headers."""
    found, at = [], 0
    while at < len(blob):
        head, start = blob[at : at + _BLOCK], at + _BLOCK
        size = head[124:135]
        plain = head[156:157] == b"0" and head[257:263] == b"ustar\0" and head[345:346] == b"\0"
        if not plain or size.strip(b"01234567") or head[148:154] != b"%06o" % (sum(head) - sum(head[148:156]) + 256):
            return _slow_entries(blob)
        stop = start + int(size, 8)
        found.append((head[:100].rstrip(b"\0").decode(errors="surrogateescape"), blob[start:stop]))
        at = -(-stop // _BLOCK) * _BLOCK
    return found, at


def _slow_entries(blob: bytes) -> tuple[list[tuple[str, bytes]], int]:
    found, end = [], 0
    for member, stop in _headers(io.BytesIO(blob)):
        if member.isreg():
            found.append((member.name, blob[member.offset_data : member.offset_data + member.size]))
        end = stop
    return found, end


def _headers(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member with the first byte after it. Stops without a word where nothing can be parsed: callers check."""
    with suppress(tarfile.TarError, ValueError):
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file is the caller's to close
        while (member := tar.next()) is not None:
            if tar.offset <= member.offset:
                return  # a negative size: tarfile would go round in circles
            yield member, tar.offset
            tar.members.clear()  # type: ignore[attr-defined]  # or it keeps them all


def _ending(file: BinaryIO, end: int) -> str | None:
    """What is wrong with the bytes after the last member; None for an end of archive, at least 1,024 zeros."""
    file.seek(end)
    block = file.read(_BLOCK)
    if any(block):
        return f"no tar header at byte {end} but {block[:12]!r}"
    zeros = len(block)
    while data := file.read(1 << 20):
        if any(data):
            return f"the header at byte {end} is all zeros, with data after it"
        zeros += len(data)
    return None if zeros >= 2 * _BLOCK else f"it ends at byte {end + zeros} without the end-of-archive marker"
