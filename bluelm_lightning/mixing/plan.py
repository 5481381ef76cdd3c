"""What ``bluelm-mix`` is told: its YAML file, and the stage's sources in it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import ConfigError


@dataclass
class HeldOut:
    """One set whose loss the mixture shall lower.

    Args:
        path: shards, as in a stage's sources.
        name: default: the last part of ``path``.
        weight: of its loss in the weighted mean.
        count: samples of it that are scored, evenly over the set.
    """

    path: str
    name: str | None = None
    weight: float = 1.0
    count: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or self.count < 1:  # NaN is not either
            raise ConfigError(f"weight {self.weight}, count {self.count}; give 0 or more, 1 or more", "held_out")
        self.name = self.name or last_part(self.path)


@dataclass
class MixPlan:
    """Keys of the YAML.

    Args:
        stage: the stage's YAML, a file or a packaged one; its sources are what is mixed.
        held_out: what counts.
        out: folder of the proxies and of the results.
        settings: overrides for the proxies, as on the command line of bluelm-fit: ``{trainer.max_steps: 150}``.
        parents: finished runs that each proxy starts from, as ``--init_from`` but folders: ``vision=runs/tower``.
        unit: what is shared out: ``tokens`` or ``samples``.
        first: proxies spread over all mixtures, the uniform one among them.
        later: proxies around the minimum that the first ones predict.
        smallest: least share that a source may get.
        resamples: bootstrap draws behind the intervals.
        seed: of the mixtures and the draws.
    """

    stage: str
    held_out: list[HeldOut]
    out: str
    settings: dict[str, Any] = field(default_factory=dict)
    parents: list[str] = field(default_factory=list)
    unit: str = "tokens"
    first: int = 8
    later: int = 6
    smallest: float = 0.03
    resamples: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.held_out:
            raise ConfigError("is empty; name at least one set", "held_out")
        if not any(held.weight for held in self.held_out):
            raise ConfigError("all weights are 0; give the sets that count a weight above 0", "held_out")
        refuse_equal([str(held.name) for held in self.held_out], "held_out")
        if self.unit not in ("tokens", "samples"):
            raise ConfigError(f"{self.unit!r} is not one of tokens, samples", "unit")
        for key, least in (("first", 1), ("later", 0), ("resamples", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"{getattr(self, key)} is below {least}", key)


def last_part(path: str) -> str:
    """What a set of shards is called if nobody says it."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def refuse_equal(names: list[str], key: str) -> None:
    """Raises ConfigError: two sets would be one in every report."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{names.count(twice[0])} are called {twice[0]!r}; give each a name of its own", key)


class StageSources:
    """The sources of a stage's YAML, whose shares are what is looked for.

    Args:
        stage: the YAML.
        unit: ``tokens`` or ``samples``.

    Raises:
        ConfigError: fewer than two sources, two of one name, or one that ends after some epochs: its share would too.
    """

    def __init__(self, stage: str, unit: str) -> None:
        from bluelm_lightning.cli.config_files import find_config, read_config

        self.config = find_config(stage, "stage").resolve()
        self.weight = "token_weight" if unit == "tokens" else "weight"
        data = read_config(self.config, "stage").get("data")
        data = data.get("init_args") if isinstance(data, dict) else data
        if not isinstance(data, dict):
            raise ConfigError(f"{stage} has no sources under data.init_args; name a stage's YAML", "stage")
        self.specs, self.tokenizer = data.get("sources") or [], data.get("tokenizer")
        if not isinstance(self.specs, list) or len(self.specs) < 2:
            count = len(self.specs) if isinstance(self.specs, list) else 1
            raise ConfigError(f"{stage} has {count} sources; a mixture needs two or more", "data.sources")
        for spec in self.specs:
            if not isinstance(spec, dict) or spec.get("epochs") is not None or not isinstance(spec.get("path"), str):
                fix = "a proxy's source needs a path and no epochs, {path: FOLDER}; name a stage whose sources are so"
                raise ConfigError(f"{spec} cannot hold its share: {fix}", "data.sources")
        self.names = [str(spec.get("name") or last_part(spec["path"])) for spec in self.specs]
        refuse_equal(self.names, "data.sources")

    def at(self, shares: Any) -> list[dict[str, Any]]:
        """The sources with these shares float[K]."""
        kept = [{key: value for key, value in s.items() if key not in ("weight", "token_weight")} for s in self.specs]
        return [{**spec, self.weight: float(share)} for spec, share in zip(kept, shares, strict=True)]

    def key(self, parents: list[str]) -> str:
        """Changes with shards, tokenizer or a parent's weights."""
        from bluelm_lightning.data.shards import ShardSource

        parts = [ShardSource(spec["path"]).fingerprint for spec in self.specs]
        words = Path(str(self.tokenizer)) / "tokenizer.json"
        parts.append(hashlib.sha256(words.read_bytes()).hexdigest() if words.is_file() else str(self.tokenizer))
        for parent in parents:
            weights = Path(parent.rpartition("=")[2]) / "checkpoints" / "last.ckpt"
            if not weights.is_file():
                raise ConfigError(f"{weights} does not exist; name folders that bluelm-fit wrote", "parents")
            parts.append(f"{weights.stat().st_size} {weights.stat().st_mtime_ns}")
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
