"""EvaluationIndex: what evaluation sets ask, so that a training record can be looked up in it.

Texts are runs of n words after folding case and punctuation (a sign of a script without spaces is a word); texts of
fewer than n words count as a whole. Pictures are codes in a grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.chat import IMAGE
from bluelm_lightning.data.curation.collect import find_files
from bluelm_lightning.data.curation.near_pictures import PictureGrid
from bluelm_lightning.data.curation.pictures import FINE, SIDE, PictureCode, picture_code
from bluelm_lightning.data.curation.record import MARKS, fold
from bluelm_lightning.data.curation.shingles import SIGNS
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|(?:[^\W_{_CJK}]|[{MARKS}])+")
ENDINGS = (".jsonl", ".json", ".parquet", ".arrow", ".tar")
_BASE = np.uint64(0x9E3779B97F4A7C15)


class EvaluationIndex:
    """Looks records up.

    Args:
        arrays: of `build_index`.
        max_rms: as `PictureGrid`.
    """

    def __init__(self, arrays: Any, max_rms: float) -> None:
        self.grams, self.gram_items = arrays["grams"], arrays["gram_items"]
        self.num_grams, self.ngram = arrays["num_grams"], int(arrays["ngram"])
        self.whole, self.whole_items = arrays["whole"], arrays["whole_items"]
        self.code_items, self.names = arrays["code_items"], arrays["names"].tolist()
        self.pictured = np.bincount(self.code_items, minlength=len(self.names)) > 0
        self.pictures = PictureGrid(arrays["codes"], arrays["fine"].__getitem__, max_rms)

    def by_text(self, texts: Sequence[str], turns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int[M] items and float[M], the share of their runs of words in `texts`; 1 for a short one that is a turn."""
        short = np.unique(np.array([whole_hash(turn) for turn in turns], np.uint64))
        items = _look_up(self.whole, self.whole_items, short)
        runs = _look_up(self.grams, self.gram_items, np.unique(gram_hashes(words_of("\n".join(texts)), self.ngram)))
        partly, counts = np.unique(runs, return_counts=True)
        return np.concatenate([items, partly]), np.concatenate([np.ones(len(items)), counts / self.num_grams[partly]])

    def by_picture(self, data: bytes) -> list[tuple[int, float]]:
        """``(item, rms)`` of every item with a like picture, the likest first. Damaged pictures are like none."""
        try:
            code = picture_code(data)
        except DataError:
            return []
        return [(int(self.code_items[number]), rms) for number, rms in self.pictures.near(code)]


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of every sorted key that is wanted."""
    starts, stops = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
    found = [values[a:b] for a, b in zip(starts.tolist(), stops.tolist()) if b > a]
    return np.concatenate(found) if found else values[:0]


def words_of(text: str) -> list[str]:
    """``"Is it RED?"`` -> ``["is", "it", "red"]``."""
    return _WORD.findall(fold(text))


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest())


def gram_hashes(words: Sequence[str], ngram: int) -> np.ndarray:
    """uint64[len(words) - ngram + 1], one hash a run of words; empty where there are fewer."""
    hashes = np.array([_word_hash(word) for word in words], np.uint64)
    out = np.zeros(max(0, len(hashes) - ngram + 1), np.uint64)
    for shift in range(ngram if len(out) else 0):
        out = out * _BASE + hashes[shift : shift + len(out)]
    return out


def whole_hash(text: str) -> int:
    """Of a short text, with its numbers and signs of arithmetic, which folding would lose."""
    return _word_hash(f"{fold(text)}|{SIGNS.findall(text)}")


def prompts_of(sample: Sample) -> list[str]:
    """What an item asks, turn by turn: its text, or the turns that are not the assistant's."""
    turns = [turn["content"] for turn in sample.messages if turn["role"] != "assistant"]
    return [text.replace(IMAGE, "") for text in ([sample.text] if sample.text is not None else turns)]


def build_index(items: Iterable[tuple[str, Sample]], ngram: int, picture_items_by_text: bool) -> dict[str, np.ndarray]:
    """Arrays that `EvaluationIndex` reads.

    Args:
        items: (name of the set, item).
        ngram: words of a run.
        picture_items_by_text: the words of items with pictures are looked for, too.

    Raises:
        DataError: a damaged picture, naming set and item: what cannot be looked for must not pass for absent.
    """
    grams, gram_items, num_grams, whole, whole_items = [], [], [], [], []
    codes: list[PictureCode] = []
    code_items, names = [], []
    for number, (name, sample) in enumerate(items):
        names.append((name, sample.id))
        asked = prompts_of(sample) if picture_items_by_text or not sample.images else []
        hashes = np.unique(gram_hashes(words_of("\n".join(asked)), ngram))
        num_grams.append(len(hashes))
        grams.append(hashes)
        gram_items.append(np.full(len(hashes), number, np.int32))
        if asked and not len(hashes):
            whole.append(whole_hash("\n".join(asked)))
            whole_items.append(number)
        for data in sample.images:
            try:
                codes.append(picture_code(data))
            except DataError as error:
                reason = f"a picture of the evaluation set {name} {error.reason}; repair it or leave the item out"
                raise DataError(reason, sample.where or sample.id) from error
            code_items.append(number)
    flat = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
    order, short = np.argsort(flat, kind="stable"), np.argsort(np.array(whole, np.uint64), kind="stable")
    return {
        "grams": flat[order],
        "gram_items": np.concatenate(gram_items)[order] if grams else np.zeros(0, np.int32),
        "num_grams": np.array(num_grams, np.int32),
        "whole": np.array(whole, np.uint64)[short],
        "whole_items": np.array(whole_items, np.int32)[short],
        "codes": np.array([code.coarse for code in codes], np.uint8).reshape(len(codes), SIDE * SIDE * 3),
        "fine": np.array([code.fine for code in codes], np.uint8).reshape(len(codes), FINE * FINE),
        "code_items": np.array(code_items, np.int32),
        "ngram": np.array(ngram),
        "names": np.array(names, str).reshape(len(names), 2),
    }


def read_set(path: str) -> Iterator[Sample]:
    """Items of an evaluation set: tar shards, a saved data set, parquet, or .jsonl and .json in any dialect.

    Args:
        path: a file, a folder or a glob.

    Raises:
        ConfigError: nothing there.
        DataError: an item that cannot be read: an evaluation set must be whole.
    """
    from bluelm_lightning.data.convert import from_dataset, from_jsonl
    from bluelm_lightning.data.shards import ShardSource

    files = find_files(path, ENDINGS, "sets")
    endings = {file.suffix.lower() for file in files}
    if ".tar" in endings:  # their folder holds .json, too
        shards = ShardSource(path)
        return (shards[number] for number in range(len(shards)))
    if ".arrow" in endings:
        return from_dataset(path)

    def items(file: Path) -> Iterator[Sample]:
        return from_dataset(file) if file.suffix.lower() == ".parquet" else from_jsonl(file)

    return (sample for file in files for sample in items(file))
