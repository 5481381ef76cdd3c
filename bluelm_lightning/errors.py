"""The two errors a user meets. Both say what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A setting is wrong. The message names the key, both values, and the fix.

    Args:
        message: one sentence, ending with the fix.
        key: dotted key in the YAML, for example ``data.batch_tokens``.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class DataError(ValueError):
    """A sample cannot be used. The message names the file, the sample, the field and the reason.

    Args:
        reason: what is wrong, for example ``image 0 is truncated (1200 of 4096 bytes)``.
        where: file and key of the sample, for example ``train-000003.tar:000123``.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where


def near_or_known(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    near = get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(list(known)[:20])}"
