"""Rows out of files, each with its place: lines of jsonl, items of a JSON list, rows of parquet and data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from bluelm_lightning.data.dialects import as_conversation
from bluelm_lightning.data.image_bytes import take_images
from bluelm_lightning.data.records import load_json, parse_record
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample

BATCH = 64  # rows of parquet in memory at a time: they may hold pictures


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, bytes) of a jsonl file, without blank lines; (place, item) of a file that is one JSON list.

    Raises:
        ConfigError: a JSON list that does not parse, so that no record of it can be read.
    """
    with open(path, "rb") as file:
        is_list = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        file.seek(0)
        if not is_list:
            yield from ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip())
            return
        try:
            yield from enumerate(load_json(file.read(), str(path)), 1)
        except ValueError as error:
            raise ConfigError(f"{error}; a file that begins with [ is one JSON list") from error


def dataset_rows(data: Any) -> tuple[str, Path, Iterator[tuple[str, dict[str, Any]]]]:
    """A name for the data, the folder that its paths begin in, and ``(where, row)`` for every row.

    Pictures stay the ``{"bytes", "path"}`` that the files hold: nothing is decoded.

    Args:
        data: a parquet file, a folder of them, a folder of `Dataset.save_to_disk`, a `datasets` object, or any iterable
            of dicts.

    Raises:
        ConfigError: nothing there, several splits, or (from the iterator) a file that is no parquet.
    """
    if not isinstance(data, str | Path):
        return str(getattr(data, "split", None) or "dataset"), Path(), _object_rows(data)
    path = Path(data)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        return path.name, path, _object_rows(load_from_disk(str(path)))
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        reason = "holds no .parquet" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path} {reason}; give a parquet file or a folder of them")
    return path.stem, path if path.is_dir() else path.parent, _parquet_rows(files)


def _parquet_rows(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in files:
        numbers = count()
        try:
            with ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH):
                    yield from ((f"{path.name}:{next(numbers)}", row) for row in batch.to_pylist())
        except (ArrowException, OSError) as error:
            raise ConfigError(f"{path} cannot be read as parquet after {next(numbers)} rows: {error}") from error


def _object_rows(data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(data, dict):
        raise ConfigError(f"the data set has the splits {sorted(data)}; give one, data[{sorted(data)[0]!r}]")
    rows = data
    if hasattr(data, "with_format"):  # Arrow: rows as they are stored, with no picture decoded
        rows = (row for table in data.with_format("arrow").iter(batch_size=BATCH) for row in table.to_pylist())
    return ((f"row:{number}", row) for number, row in enumerate(rows))


def named_columns(row: Any, columns: dict[str, str | None], drop: Sequence[str], where: str) -> dict[str, Any]:
    """A row with named columns -> a record: a question and its answer become turns.

    Raises:
        ConfigError: a column is not there.
        DataError: the row is no dict.
    """
    if not isinstance(row, dict):
        raise DataError(f"the row is of type {type(row).__name__}; give dicts", where)
    for role, column in columns.items():
        if column is not None and column not in row:
            raise ConfigError(f"there is no column {column!r}; the columns are {sorted(row)}", role)
    row = {key: value for key, value in row.items() if value is not None and key not in drop}
    taken = {role: row.pop(column, None) for role, column in columns.items() if column and role != "images"}
    taken = {role: str(value) if isinstance(value, int | float) else value for role, value in taken.items()}
    if "text" in taken:
        row["text"] = taken["text"]
    if "question" in taken:
        row["messages"] = [{"role": "user", "content": taken["question"]}]
    if "answer" in taken:
        row["messages"] += [{"role": "assistant", "content": taken["answer"], "thinking": taken.get("thinking")}]
        row["answer"] = taken["answer"]
    return row


def to_sample(
    record: Any, root: Path, where: str, default_id: str, source: str | None, name: str, images: str | None = None
) -> Sample:
    """A record of any dialect, its pictures loaded -> a Sample. `source` overrules its own, `name` fills in."""
    pictures = take_images(record, root, where, images) if isinstance(record, dict) else []
    record = as_conversation(record, where) if isinstance(record, dict) else record
    sample = parse_record(record, pictures, where, default_id, name)
    sample.source = source or sample.source
    return sample
