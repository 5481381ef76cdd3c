"""Classify: tags by rules, for `Select`, for mixing and to look at."""

from __future__ import annotations

import re
from bisect import bisect_right

from bluelm_lightning.data.curation.language import find_language
from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Dropped, Filter
from bluelm_lightning.errors import ConfigError

_CODE = re.compile(
    r"```|^\s*(?:def \w+\(|class \w+[:(]|import \w+|from \w+ import |#include\b|public (?:static|class)|func \w+\(|"
    r"(?:const|let|var) \w+ =|SELECT .+ FROM |</?(?:div|html|body|script)\b)",
    re.MULTILINE,
)
_MATHS = re.compile(
    r"\\(?:frac|sqrt|sum|int|boxed|begin|times|cdot|leq|geq)\b|\$[^$\n]{1,80}\$|\d\s*[-+*/×÷^]\s*\d|=\s*-?\d"
)


class Classify(Filter):
    """Adds ``tags`` to each record; nothing is dropped::

        ["image", "language:en", "length:short", "task:easy_vqa.color", "thinking"]

    Tags: ``image`` or ``text``; ``language:..`` (``unknown`` where it cannot be told); ``length:short``,
    ``medium`` or ``long``; ``code`` and ``maths`` where signs of them stand in the text; ``thinking`` where a turn has
    a trace; ``dialogue`` for several questions; ``task:..`` for records that name a task; ``source:..``.

    Args:
        lengths: characters at which ``medium`` and ``long`` begin.
    """

    def __init__(self, lengths: list[int] | None = None) -> None:
        self.lengths = [500, 4000] if lengths is None else list(lengths)
        if len(self.lengths) != 2 or self.lengths[0] > self.lengths[1]:
            raise ConfigError(f"{self.lengths} are not two bounds in order; write [500, 4000]", "lengths")

    def process(self, record: Record) -> Record | Dropped:
        text = record.text
        turns = record.data.get("messages") or ()
        tags = {"image" if record.pictures else "text", f"language:{find_language(text) or 'unknown'}"}
        tags.add("length:" + ("short", "medium", "long")[bisect_right(self.lengths, len(text))])
        tags |= {name for name, rule in (("code", _CODE), ("maths", _MATHS)) if rule.search(text)}
        tags |= {"thinking"} if any(turn.get("thinking") for turn in turns) else set()
        tags |= {"dialogue"} if sum(turn["role"] == "user" for turn in turns) > 1 else set()
        tags |= {f"{key}:{record.data[key]}" for key in ("task", "source") if record.data.get(key)}
        held = record.data.get("tags")
        tags |= set(map(str, held)) if isinstance(held, list) else set()
        return Record({**record.data, "tags": sorted(tags)}, record.pictures, record.root)
