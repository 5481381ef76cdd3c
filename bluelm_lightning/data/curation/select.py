"""Select and Mix: which records are taken, by their tags and by their sources."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Decision, Global
from bluelm_lightning.errors import ConfigError, DataError


def rank(seed: int, record: Record) -> int:
    """A random number of 64 bits that depends on the record's source and id alone: adding others leaves it."""
    name = f"{seed}/{record.source}/{record.id}".encode(errors="replace")
    return int.from_bytes(blake2b(name, digest_size=8).digest())


def _ranks(seed: int, records: Sequence[Record]) -> np.ndarray:
    return np.array([rank(seed, record) for record in records], np.uint64)


class Select(Global):
    """Takes records by the tags of `Classify`.

    Args:
        any_of: a record needs one of these; default: none is needed.
        none_of: and has none of these.
        caps: at most so many records of a tag, chosen at random; a record of several capped tags must fit in each.
        seed: of the choice.
    """

    def __init__(
        self,
        any_of: list[str] | None = None,
        none_of: list[str] | None = None,
        caps: dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        wrong = [tag for tag, cap in (caps or {}).items() if cap < 0]
        if wrong or not (any_of or none_of or caps):
            text = f"the cap of {wrong[0]} is below 0" if wrong else "selects nothing; give any_of, none_of or caps"
            raise ConfigError(text, "caps" if wrong else "any_of")
        self.any_of, self.none_of, self.caps, self.seed = any_of, none_of, caps, seed

    def sketch(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        tags = [set(record.data.get("tags") or ()) for record in records]
        wanted, unwanted = set(self.any_of or ()), set(self.none_of or ())
        state = [
            0 if (not wanted or tags_ & wanted) and not tags_ & unwanted else 1 + bool(tags_ & unwanted)
            for tags_ in tags
        ]
        capped = [[cap in tags_ for cap in self.caps or ()] for tags_ in tags]
        width = len(self.caps or ())
        return {
            "state": np.array(state, np.uint8),
            "capped": np.array(capped, bool).reshape(len(records), width),
            "rank": _ranks(self.seed, records),
        }

    def decide(self, sketches: Any, rows: Any) -> Decision:
        decision = Decision.keep_all(len(rows))
        decision.names = ["not selected", "tag not wanted", *(f"cap of {tag}" for tag in self.caps or ())]
        decision.reason = sketches.column("state").astype(np.uint8)
        capped, order = sketches.column("capped"), np.argsort(sketches.column("rank"), kind="stable")
        for number, cap in enumerate((self.caps or {}).values()):
            here = order[capped[order, number] & (decision.reason[order] == 0)]
            decision.reason[here[cap:]] = 3 + number
        return decision


class Mix(Global):
    """Takes from each source the share that its weight gives it.

    Args:
        weights: by source; they need not add up to 1. A source of weight 0 is left out.
        total: records of the result; default: as many as the scarcest source allows.
        max_repeats: how often a record of a scarce source may be taken at most. Copies are called ``ID#2``.
        seed: of the choice among a source's records.

    Raises:
        ConfigError: a source without a weight, or a weight without a source.
    """

    def __init__(
        self, weights: dict[str, float], total: int | None = None, max_repeats: int = 1, seed: int = 0
    ) -> None:
        if not weights or min(weights.values()) < 0 or max_repeats < 1 or sum(weights.values()) <= 0:
            raise ConfigError(f"{weights} must be positive, and max_repeats {max_repeats} at least 1", "weights")
        if total is not None and total < 1:
            raise ConfigError(f"{total} is less than 1", "total")
        self.weights = {source: float(weight) for source, weight in weights.items()}
        self.total, self.max_repeats, self.seed = total, max_repeats, seed

    def sketch(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        names = sorted({record.source for record in records})
        places = {name: place for place, name in enumerate(names)}
        source = np.array([places[record.source] for record in records], np.int32)
        return {"names": np.array(names, str), "source": source, "rank": _ranks(self.seed, records)}

    def decide(self, sketches: Any, rows: Any) -> Decision:
        if not len(rows):
            raise DataError("no record is left to mix; see dropped.jsonl of the steps before")
        per_part = list(zip(sketches.parts("names"), sketches.parts("source")))
        sources = np.concatenate([names[source] for names, source in per_part if len(source)])
        ranks, (names, counts) = sketches.column("rank"), np.unique(sources, return_counts=True)
        have = dict(zip(names.tolist(), counts.tolist()))
        self._check(have)
        decision = Decision.keep_all(len(rows))
        decision.names, decision.copies = ["beyond its source's share"], np.ones(len(rows), np.int32)
        decision.reason[:] = 1
        for name, count in self._amounts(have).items():
            here = np.flatnonzero(sources == name)
            here = here[np.argsort(ranks[here], kind="stable")]
            whole, rest = divmod(count, len(here))
            decision.copies[here] = whole
            decision.copies[here[:rest]] += 1
            decision.reason[here[: count if not whole else None]] = 0
        return decision

    def _check(self, have: dict[str, int]) -> None:
        without = sorted(set(have) - set(self.weights))
        missing = sorted(name for name, weight in self.weights.items() if weight and name not in have)
        if without or missing:
            what = f"source {without[0]!r} has no weight" if without else f"there are no records of {missing[0]!r}"
            raise ConfigError(f"{what}; the sources are {', '.join(sorted(have))}", "weights")

    def _amounts(self, have: dict[str, int]) -> dict[str, int]:
        """Records of each source; a source that has too few for `total` gives what it can."""
        scale = sum(self.weights.values())
        shares = {name: weight / scale for name, weight in self.weights.items() if weight}
        most = {name: have[name] * self.max_repeats for name in shares}
        total = min(most[name] / share for name, share in shares.items()) if self.total is None else self.total
        return {name: min(most[name], round(total * share + 1e-9)) for name, share in shares.items()}
