"""Decontaminate: no record that evaluation sets ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.curation.collect import find_files
from bluelm_lightning.data.curation.evaluation_index import ENDINGS, EvaluationIndex, build_index, read_set
from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Dropped, Filter
from bluelm_lightning.errors import ConfigError

_INDEX = "evaluation.npz"


class Decontaminate(Filter):
    """Drops records that hold an item of an evaluation set; ``dropped.jsonl`` names the item for each.

    An item without pictures is found by its words: a share of its runs of `ngram` words stands in the record, or, where
    it has fewer words, a turn of the record is the item, letter by letter after folding. An item with pictures is found
    by a like picture (re-encoded, resized), whatever is asked about it.

    Args:
        sets: .jsonl, .json, .parquet, saved data sets, shards, folders and globs of them; a name for each, or a list
            that is named by their stems.
        ngram: words of a run. 13 is usual for long texts; questions are shorter.
        min_share: of an item's runs that stand in a record.
        max_rms: difference of two pictures' codes up to which they are alike; see `picture_code`.
        with_text: a like picture is not enough, the item's words must be there too. For pictures that many sets share.

    Raises:
        ConfigError: no set, two sets of one name, or a number out of range.

    Source: n-gram overlap as GPT-3 (Brown et al., 2020); the share and the rule for pictures are our choice.
    """

    version = 3

    def __init__(
        self,
        sets: list[str] | dict[str, str],
        ngram: int = 8,
        min_share: float = 0.5,
        max_rms: float = 5.0,
        with_text: bool = False,
    ) -> None:
        if not sets:
            raise ConfigError("names no evaluation set; give paths", "sets")
        if not 0 < min_share <= 1 or ngram < 1:
            raise ConfigError(f"min_share {min_share} must be a share and ngram {ngram} at least 1", "min_share")
        if max_rms < 0:
            raise ConfigError(f"{max_rms} is below 0", "max_rms")
        names = [Path(path).stem for path in sets]
        twice = [name for name in names if names.count(name) > 1]
        if isinstance(sets, list) and twice:
            raise ConfigError(f"two are called {twice[0]!r}; give each a name, {{mmlu: {sets[0]}, ...}}", "sets")
        self.sets, self.ngram, self.min_share = sets, ngram, min_share
        self.max_rms, self.with_text = max_rms, with_text
        self._index: EvaluationIndex | None = None

    def _named(self) -> dict[str, str]:
        return self.sets if isinstance(self.sets, dict) else {Path(path).stem: path for path in self.sets}

    def inputs(self) -> list[Path]:
        return [file for path in self._named().values() for file in find_files(path, ENDINGS, "sets")]

    def prepare(self, folder: Path) -> None:
        items = ((name, sample) for name, path in self._named().items() for sample in read_set(path))
        np.savez(folder / _INDEX, allow_pickle=False, **build_index(items, self.ngram, self.with_text))

    def open(self, folder: Path) -> None:
        with np.load(folder / _INDEX) as arrays:
            self._index = EvaluationIndex(arrays, self.max_rms)

    def process(self, record: Record) -> Record | Dropped:
        index = self._index
        assert index is not None, "open() comes first"
        near = dict(one for data in record.images() for one in reversed(index.by_picture(data)))
        if near and not self.with_text:
            item = min(near, key=lambda one: (near[one], one))
            return Dropped("evaluation picture", f"{near[item]:.2f} levels apart", self._match(item, near[item]))
        items, shares = index.by_text(record.texts(), _turns(record))
        shares = np.where(~index.pictured[items] | np.isin(items, list(near)), shares, 0)
        if not len(items) or shares.max() < self.min_share:
            return record
        best = int(np.argmax(shares))
        why = f"{shares[best]:.0%} of its runs of words"
        return Dropped("evaluation text", why, self._match(int(items[best]), float(shares[best])))

    def _match(self, item: int, score: float) -> dict[str, Any]:
        assert self._index is not None
        name, id = self._index.names[item]
        return {"id": id, "source": name, "score": round(score, 3)}


def _turns(record: Record) -> list[str]:
    """What could be a short item as a whole."""
    if record.data.get("text") is not None:
        return record.texts()
    return [turn["content"].replace("<image>", "") for turn in record.data["messages"] if turn["role"] != "assistant"]
