"""Collection: records of JSON, of shards, of Hugging Face data sets and plain texts, cut into parts."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from bluelm_lightning.data.curation.step import Collect
from bluelm_lightning.data.records import load_json, parse_record
from bluelm_lightning.data.rows import json_rows, named_columns, to_sample
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample

PART_BYTES = 16_000_000


def find_files(paths: str | list[str], endings: tuple[str, ...], key: str = "paths") -> list[Path]:
    """Files, folders (searched with their subfolders) and globs -> files, each once, in order.

    Raises:
        ConfigError: one of them is nothing, or there is no file of these endings in it.
    """
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(given).expanduser()
        if path.is_dir():
            here = sorted(one for one in path.rglob("*") if one.suffix.lower() in endings and one.is_file())
        else:
            hits = [one for one in sorted(map(Path, glob(str(path), recursive=True))) if one.is_file()]
            here = [path] if path.is_file() else [one for one in hits if one.suffix.lower() in endings] or hits
        if not here:
            raise ConfigError(f"{given} holds no {' or '.join(endings)}; give a file, a folder or a glob", key)
        found |= dict.fromkeys(here)
    return list(found)


def _place(path: Path) -> str:
    """What a dropped record is found by: files of one name lie in several folders."""
    return f"{path.parent.name}/{path.name}"


def line_ranges(path: Path, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """``(first byte, byte behind, number of the first line)`` of pieces that end at ends of lines."""
    start, line = 0, 1
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, 2)
        while start < size:
            file.seek(start)
            data = file.read(part_bytes)
            while start + len(data) < size and not data.endswith(b"\n"):
                more = file.read(1 << 16)
                end = more.find(b"\n") + 1
                data += more[:end] if end else more
            yield start, start + len(data), line
            start, line = start + len(data), line + data.count(b"\n")


class CollectJson(Collect):
    """Records of .jsonl, or of .json that is one list, in any dialect of `data.records` and `data.dialects`.

    Those are OpenAI chat, ShareGPT and LLaVA, captions, VQA, pages of OCR and GUI screens with boxes.

    Args:
        paths: files, folders, globs.
        image_root: where relative paths of pictures begin; default: each file's folder.
        source: name for all samples; default: each record's own, else the file's name.
        part_bytes: size of a part; a file that is one JSON list is one part.
    """

    def __init__(
        self,
        paths: str | list[str],
        image_root: str | None = None,
        source: str | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        if part_bytes < 1:
            raise ConfigError(f"{part_bytes} is less than 1", "part_bytes")
        self.paths, self.image_root, self.source, self.part_bytes = paths, image_root, source, part_bytes

    def inputs(self) -> list[Path]:
        return find_files(self.paths, (".jsonl", ".json"))

    def units(self) -> list[Any]:
        found = []
        for path in self.inputs():
            with open(path, "rb") as file:
                is_list = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
            ranges = [(0, -1, 1)] if is_list else line_ranges(path, self.part_bytes)
            found += [[str(path), *piece] for piece in ranges]
        return found

    def read(self, unit: Any) -> Iterator[Sample]:
        name, start, stop, first = unit
        path = Path(name)
        root = Path(self.image_root).expanduser() if self.image_root else path.parent

        def parse(item: tuple[int, Any]) -> Sample:
            number, line = item
            where = f"{_place(path)}:{number}"
            record = load_json(line, where) if isinstance(line, bytes) else line
            return to_sample(record, root, where, f"{path.stem}-{number:06d}", self.source, path.stem)

        return map(parse, json_rows(path) if stop < 0 else _lines(path, start, stop, first))


def _lines(path: Path, start: int, stop: int, number: int) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb", buffering=1 << 20) as file:
        file.seek(start)
        while file.tell() < stop:
            line = file.readline().strip()
            if line:
                yield number, line
            number += 1


class CollectText(Collect):
    """Plain texts, UTF-8. One that speaks of ``<image>`` is dropped: that stands for a picture.

    Args:
        paths: files, folders, globs.
        split: a text is a whole ``file``, a ``paragraph`` (between empty lines) or a ``line``.
        source: name for all samples; default: the file's name.
    """

    version = 2

    def __init__(self, paths: str | list[str], split: str = "file", source: str | None = None) -> None:
        if split not in ("file", "paragraph", "line"):
            raise ConfigError(f"{split!r} is not one of file, paragraph, line", "split")
        self.paths, self.split, self.source = paths, split, source

    def inputs(self) -> list[Path]:
        return find_files(self.paths, (".txt", ".md"))

    def units(self) -> list[Any]:
        return [str(path) for path in self.inputs()]

    def read(self, unit: Any) -> Iterator[Sample]:
        path = Path(unit)

        def parse(item: tuple[int, str]) -> Sample:
            number, text = item
            where = f"{_place(path)}:{number}"
            source = self.source or path.stem
            return parse_record({"text": text.strip()}, [], where, f"{path.stem}-{number:06d}", source)

        return map(parse, enumerate(filter(str.strip, self._texts(path))))

    def _texts(self, path: Path) -> Iterator[str]:
        try:
            whole = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: {error}; save it again", _place(path)) from error
        ends = {"paragraph": "\n\n", "line": "\n"}
        yield from [whole] if self.split == "file" else whole.split(ends[self.split])


class CollectShards(Collect):
    """Samples of tar shards, a part a tar.

    Args:
        paths: as `ShardSource` takes them: folders, tars, globs, brace lists.
        source: name for all samples; default: each sample's own, else the folder's name.
    """

    def __init__(self, paths: str | list[str], source: str | None = None) -> None:
        self.paths, self.source = paths, source

    def inputs(self) -> list[Path]:
        from bluelm_lightning.data.shard_paths import find_shards

        return find_shards(self.paths)

    def units(self) -> list[Any]:
        return [str(path) for path in self.inputs()]

    def read(self, unit: Any) -> Iterator[Sample]:
        from bluelm_lightning.data.shards import ShardSource

        shard = ShardSource(unit)

        def sample(number: int) -> Sample:
            found = shard[number]
            found.source = self.source or found.source
            return found

        return map(sample, range(len(shard)))


class CollectDataset(Collect):
    """Rows of a Hugging Face data set: of the hub, saved by `save_to_disk`, or parquet files.

    Args:
        path: a folder, a parquet file, or a name for `datasets.load_dataset`.
        name: configuration of a data set of the hub.
        split: of a data set of the hub, or of a folder with several.
        columns: what columns mean: ``{question: q, answer: a, thinking: t}``, ``{text: t}``, ``{images: picture}``;
            default: rows are records in any dialect.
        drop: columns to leave out.
        source: name for all samples; default: each row's own, else the name of the data.
        part_rows: rows of a part.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        columns: dict[str, str] | None = None,
        drop: list[str] | None = None,
        source: str | None = None,
        part_rows: int = 20_000,
    ) -> None:
        wrong = sorted(set(columns or ()) - {"question", "answer", "thinking", "text", "images"})
        if wrong or part_rows < 1:
            fix = "give question, answer, thinking, text, images"
            raise ConfigError(f"{wrong[0]!r} is no role; {fix}" if wrong else "part_rows is below 1", "columns")
        if {"answer", "thinking"} & set(columns or ()) and "question" not in (columns or ()):
            raise ConfigError("an answer needs its question; name its column, too", "columns")
        self.path, self.name, self.split, self.source = path, name, split, source
        self.columns, self.drop, self.part_rows = columns, drop, part_rows

    def inputs(self) -> list[Path]:
        folder = self._folder()
        return find_files(str(folder), (".parquet", ".arrow"), "path") if folder.exists() else []

    def _folder(self) -> Path:
        """The path, or the split's folder in it."""
        path = Path(self.path)
        if not (path / "dataset_dict.json").is_file():
            return path
        splits = sorted(one.parent.name for one in path.glob("*/state.json"))
        if self.split not in splits:
            raise ConfigError(f"{self.path} has no {self.split!r}; it has {', '.join(splits)}", "split")
        return path / self.split

    def units(self) -> list[Any]:
        rows = len(self._data())
        return [[start, min(rows, start + self.part_rows)] for start in range(0, rows, self.part_rows)]

    def _data(self) -> Any:
        import datasets

        folder = self._folder()
        try:
            if (folder / "state.json").is_file():
                return datasets.load_from_disk(str(folder))
            if folder.exists():
                return datasets.Dataset.from_parquet([str(path) for path in self.inputs()])
            return datasets.load_dataset(self.path, self.name, split=self.split)
        except Exception as error:  # of a file, of the hub, of the network, of a cache
            text = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{self.path} cannot be loaded: {text}; give parquet, a saved data set or a name of the hub", "path"
            ) from error

    def read(self, unit: Any) -> Iterator[Sample]:
        start, stop = unit
        data = self._data().select(range(start, stop)).with_format("arrow")
        rows = (row for table in data.iter(batch_size=64) for row in table.to_pylist())
        folder = Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent
        name = Path(self.path).stem

        def parse(item: tuple[int, Any]) -> Sample:
            number, row = item
            where = f"{name}:{number}"
            roles = {"question": None, "answer": None, "thinking": None, "text": None, "images": None}
            record = named_columns(row, roles | (self.columns or {}), self.drop or (), where)
            images = (self.columns or {}).get("images")
            return to_sample(record, folder, where, f"{name}-{number:06d}", self.source, name, images)

        return map(parse, enumerate(rows, start))
