"""Data of the claims: the recipe's tokenizer and training sources, each written once under ``ROOT/data``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.quickstart.arithmetic import arithmetic
from bluelm_lightning.quickstart.digits import digit_reading, digit_sums
from bluelm_lightning.recipe import prepare as recipe
from bluelm_lightning.recipe.corpus import docstrings
from bluelm_lightning.reproduce.jobs import locked
from bluelm_lightning.types import Sample

_MAKERS: tuple[str, ...] = ("recipe/corpus.py", "recipe/needles.py", "recipe/prepare.py", "quickstart/digits.py")
_MAKERS += ("quickstart/digit_pictures.py", "quickstart/arithmetic.py")

_LONGEST = 600  # characters; such a document fits a row of 256 tokens

HELD_OUT: dict[str, Callable[[], list[Sample]]] = {
    "text": lambda: list(islice((s for s in docstrings("test") if len(s.text or "") < _LONGEST), 100)),
    "arithmetic": lambda: list(arithmetic("test", 200, seed=0, thinking=True)),
    "digits_caption": lambda: list(digit_reading("test", 200, seed=0)),
    "digits_sum": lambda: list(digit_sums("test", 200, seed=0, thinking=True)),
}


def ready_tokenizer(root: Path) -> Path:
    """The folder of the tokenizer, trained unless it is there."""
    with locked(root / "tokenizer.lock"):
        if _stale(root / "tokenizer.made"):
            recipe.write_tokenizer(root)
            (root / "tokenizer.made").write_text(_makers())
    return root / "tokenizer"


def ready_source(root: Path, name: str) -> Path:
    """The folder of a training source, written unless it is there.

    Raises:
        ConfigError: the recipe has no source of that name.
    """
    known = recipe.training_sources(root)
    if name not in known:
        raise ConfigError(f"no source {name!r}; there are {', '.join(known)}", "data.sources")
    ready_tokenizer(root)  # the needles measure their lengths by it
    folder = root / "data" / name
    with locked(root / "data" / f"{name}.lock"):
        if _stale(note := folder.with_suffix(".made")):
            recipe.write_source(name, root)
            note.write_text(_makers())
    return folder


def content_key(root: Path, name: str) -> str:
    """Of what stands in a source and the tokenizer, whoever made it."""
    shards = json.loads((ready_source(root, name) / "manifest.json").read_text())["shards"]
    tokenizer = (root / "tokenizer" / "tokenizer.json").read_bytes()
    return hashlib.sha256(json.dumps([shard["sha256"] for shard in shards]).encode() + tokenizer).hexdigest()[:16]


def _stale(note: Path) -> bool:
    return not note.is_file() or note.read_text() != _makers()


def _makers() -> str:
    """Of the code that makes the data."""
    package = Path(__file__).parents[1]
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in _MAKERS)).hexdigest()[:16]
