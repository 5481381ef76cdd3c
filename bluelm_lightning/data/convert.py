"""Converters: jsonl, parquet, Hugging Face data sets and folders of pictures -> samples -> shards.

    report = write_shards(from_jsonl("llava.json", image_root="coco"), "shards/llava")

A converter's iterator goes on after a bad record: ``next`` raises a DataError for it, and the next call gives the one
behind it. :func:`write_shards` counts on that: what goes in = what is written + what is dropped.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from inspect import isgenerator
from pathlib import Path
from typing import Any

from bluelm_lightning.data.image_folder import from_image_folder
from bluelm_lightning.data.records import load_json, parse_record
from bluelm_lightning.data.rows import dataset_rows, json_rows, named_columns, to_sample
from bluelm_lightning.data.shard_writer import ShardWriter
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample

__all__ = ["from_dataset", "from_image_folder", "from_jsonl", "parse_record", "write_shards"]

log = logging.getLogger(__name__)
KEEP_DROPPED = 100  # dropped records that the report names one by one


def from_jsonl(path: str | Path, image_root: str | Path | None = None, source: str | None = None) -> Iterator[Sample]:
    """Records in any dialect of `records`, one a line; or one JSON list, as in LLaVA's files.

    Pictures are paths or data URIs under ``image`` or ``images``, or in OpenAI's ``image_url`` parts.

    Args:
        path: the file.
        image_root: where relative paths of pictures begin; default: the file's folder.
        source: name for all samples; default: each record's own, else the file's name.

    Raises:
        ConfigError: no such file, or a JSON list that does not parse.
        DataError: for one record, naming file, line (or place in the list) and field.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist or is no file; give a .jsonl")
    root = Path(image_root) if image_root else path.parent

    def parse(item: tuple[int, Any]) -> Sample:
        number, line = item
        where = f"{path.name}:{number}"
        record = load_json(line, where) if isinstance(line, bytes) else line
        return to_sample(record, root, where, f"{path.stem}-{number:06d}", source, path.stem)

    return map(parse, json_rows(path))  # map, not a generator: the next call goes on after `parse` has raised


def from_dataset(
    data: Any,
    question: str | None = None,
    answer: str | None = None,
    thinking: str | None = None,
    text: str | None = None,
    images: str | None = None,
    image_root: str | Path | None = None,
    source: str | None = None,
    drop: Sequence[str] = (),
) -> Iterator[Sample]:
    """Rows of parquet files or of a Hugging Face data set. Pictures pass as they are stored, undecoded.

    Args:
        data: a parquet file, a folder of them, a folder of `save_to_disk`, a `datasets` object, an iterable of dicts.
        question: column of the user's turn; without it rows are records in any dialect of `records`.
        answer: column of the assistant's turn, and of the reference answer.
        thinking: column of the assistant's thinking.
        text: column of a pre-training text, instead of `question`.
        images: column of the picture or pictures; default: ``images`` or ``image``.
        image_root: where relative paths of pictures begin; default: the folder of the data.
        source: name for all samples; default: each row's own, else the name of the data.
        drop: columns to leave out; the others are kept in ``Sample.meta``.

    Raises:
        ConfigError: nothing there, several splits, no column of that name, or columns that do not go together.
        DataError: for one row, naming file, row and field.
    """
    if (question and text) or (thinking and not answer) or (answer and not question):
        raise ConfigError("question and text exclude each other, thinking needs answer, answer needs question")
    name, folder, rows = dataset_rows(data)
    root = Path(image_root) if image_root else folder
    columns = {"question": question, "answer": answer, "thinking": thinking, "text": text, "images": images}

    def parse(item: tuple[str, Any]) -> Sample:
        where, row = item
        record = named_columns(row, columns, drop, where)
        return to_sample(record, root, where, f"{name}-{where}", source, name, images)

    return map(parse, rows)


def write_shards(
    samples: Iterable[Sample], folder: str | Path, on_error: str = "report", **options: Any
) -> dict[str, Any]:
    """Writes samples to shards.

    Args:
        samples: from a converter, or any iterable.
        folder: as `ShardWriter`, which takes `options` too.
        on_error: ``report`` leaves bad records out and counts them; ``raise`` stops at the first.

    Returns:
        ``{"in": 10, "written": 9, "dropped": {"is not JSON": 1}, "dropped_records": ["a.jsonl:7: is not JSON: ..."]}``,
        also in the manifest as ``report``. Reasons are counted without their details; the first 100 records are named.

    Raises:
        ConfigError: as `ShardWriter`, or another word for `on_error`.
        DataError: the first bad record if told so; no record was good; a generator that raised, for it cannot go on.
    """
    if on_error not in ("report", "raise"):
        raise ConfigError(f"{on_error!r} is not one of report, raise", "on_error")
    dropped: Counter[str] = Counter()
    named: list[str] = []
    written, rows = 0, iter(samples)
    with ShardWriter(folder, **options) as writer:
        while True:
            try:
                sample = next(rows, None)
                if sample is None:
                    break
                writer.write(sample)
                written += 1
            except DataError as error:
                if on_error == "raise" or (isgenerator(rows) and rows.gi_frame is None):
                    raise
                log.warning("dropped %s", error)
                dropped[without_details(error.reason)] += 1
                named += [str(error)] * (len(named) < KEEP_DROPPED)
        if not written:
            first = f"; the first: {named[0]}" if named else ""
            raise DataError(f"nothing to write, {dropped.total()} records were dropped{first}", str(folder))
        total = {"in": written + dropped.total(), "written": written, "dropped": dict(dropped.most_common())}
        writer.extra["report"] = {**total, "dropped_records": named}
    return writer.extra["report"]


def without_details(reason: str) -> str:
    """``image 3 is not JSON: Expecting...; fix`` -> ``image # is not JSON``, so that like reasons count as one."""
    return re.sub(r"'[^']*'|\d+", "#", re.split("[:;] ", reason)[0])
