"""Shards that take the place of others: written beside them, and put there when they are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bluelm_lightning.data.shard_paths import written_by_us


@contextmanager
def in_place_of(folder: Path, prefix: str = "shard") -> Iterator[Path]:
    """A folder beside ``folder`` to write shards into; it takes its place when the block ends without an error.

    After an error, and after a kill, ``folder`` is as it was: the next call puts it back and removes what was begun.
    Files in it that no :class:`ShardWriter` wrote are kept.
    The place is empty for an instant, between two renames.

    Args:
        folder: where the shards shall be.
        prefix: of their names.

    Raises:
        ConfigError: ``folder`` holds shards of others.
    """
    folder = Path(os.path.realpath(folder))
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    _tidy(folder, new, old)
    written_by_us(folder, prefix)  # before anything is done
    try:
        yield new
        _keep_others(folder, new, prefix)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        _tidy(folder, new, old)


def _tidy(folder: Path, new: Path, old: Path) -> None:
    if old.exists() and not folder.exists():  # stopped between the two renames
        os.replace(old, folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _keep_others(folder: Path, new: Path, prefix: str) -> None:
    """Copies what is not ours, so that a kill loses none of it."""
    ours = set(written_by_us(folder, prefix))
    for path in folder.glob("*"):
        if path not in ours and not (new / path.name).exists():
            shutil.copytree(path, new / path.name) if path.is_dir() else shutil.copy2(path, new / path.name)
