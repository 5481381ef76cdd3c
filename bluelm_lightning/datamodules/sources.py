"""What a source of the mixture is in YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import ConfigError, near_or_known
from bluelm_lightning.types import Sample, Source


@dataclass
class SourceSpec:
    """One source of the mixture: a folder of shards, or any object with ``__len__`` and ``__getitem__``.

    Args:
        path: folder, glob or tar file of shards.
        source: a source of your own by ``class_path``, instead of ``path``.
        name: name in logs; default: the last part of ``path``, or the class of ``source``.
        weight: share of samples, on any scale; default: in proportion to the samples.
        token_weight: share of tokens instead; the tokens of a sample are measured on a few of each source.
        epochs: passes in one epoch of the trainer, after which it leaves its share to the others; default: without end.
        max_repeats: most times that one of its samples is seen, over all stages that share a ledger (see
            ``KeyDataResampling``), in this run where none does; then it leaves its share to the others.
        thinking_share: in which share of the passes a thinking trace is kept; default: always.
        cut_share: in which share of those it is cut at a random place and closed, so that the model learns to answer
            under a thinking budget.
        stated_share: in which share of those the prompt states a budget that the trace keeps.
    """

    path: str | None = None
    source: Source | None = None
    name: str | None = None
    weight: float | None = None
    token_weight: float | None = None
    epochs: float | None = None
    thinking_share: float | None = None
    cut_share: float = 0.0
    stated_share: float = 0.0
    max_repeats: int | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.source is None):
            raise ConfigError("give either path or source", "data.sources")
        for key, value, most in ((key, getattr(self, key), math.inf) for key in ("weight", "token_weight", "epochs")):
            if value is not None and not 0 < value < most:
                raise ConfigError(f"{key} is {value}; give a positive number", f"data.sources.{key}")
        if self.max_repeats is not None and self.max_repeats < 1:
            raise ConfigError(f"{self.max_repeats} is below 1; leave the source out", "data.sources.max_repeats")
        for key in ("thinking_share", "cut_share", "stated_share"):
            share = getattr(self, key)
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"{share} is not between 0 and 1", f"data.sources.{key}")

    def open(self) -> Source:
        return self.source if self.source is not None else ShardSource(str(self.path), name=self.name)

    @property
    def label(self) -> str:
        return self.name or (str(self.path).rstrip("/").rsplit("/", 1)[-1] if self.path else type(self.source).__name__)


def specs_of(given: Sequence[Any], key: str) -> list[SourceSpec]:
    """Sources as a data module is given them: in Python they may be mappings, ``{"path": "shards/a"}``.

    Raises:
        ConfigError: an item is neither, or has an unknown key.
    """
    known, specs = [field.name for field in fields(SourceSpec)], []
    for index, item in enumerate(given):
        where = f"{key}[{index}]"
        if not isinstance(item, SourceSpec | Mapping):
            fix = "give a SourceSpec or a mapping such as {'path': 'shards/a'}"
            raise ConfigError(f"{item!r:.60} is no source; {fix}", where)
        unknown = [name for name in item if name not in known] if isinstance(item, Mapping) else []
        if unknown:
            raise ConfigError(
                f"unknown key of SourceSpec{near_or_known(str(unknown[0]), known)}", f"{where}.{unknown[0]}"
            )
        specs.append(SourceSpec(**item) if isinstance(item, Mapping) else item)
    return specs


def weights_of(specs: Sequence[SourceSpec]) -> list[float] | None:
    """The weights, of samples or of tokens; None: in proportion to the samples.

    Raises:
        ConfigError: one kind of weight is given to some of the sources, or both kinds are given.
    """
    kinds = ([spec.weight for spec in specs], [spec.token_weight for spec in specs])
    given = [[w for w in weights if w is not None] for weights in kinds]
    if not any(given):
        return None
    if sorted(map(len, given)) != [0, len(specs)]:
        raise ConfigError("give a weight to every source or to none, and of one kind", "data.sources.weight")
    return given[0] or given[1]


class Renamed:
    """A source whose samples carry the name that the YAML gives it."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.block_sizes = getattr(source, "block_sizes", None)
        self.fingerprint = getattr(source, "fingerprint", "")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.source[index], source=self.name)
