"""Words and numbers as terminal and page both write them. What comes from data is made harmless to look at here."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from bluelm_lightning.inspection.collect import Inspection
from bluelm_lightning.inspection.pictures import PictureView
from bluelm_lightning.inspection.statistics import MEASURES, SourceStatistics
from bluelm_lightning.inspection.tokens import DocumentView
from bluelm_lightning.inspection.views import SampleView

# Escape sequences that would move the cursor, marks that turn text around, and halves of surrogate pairs
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MOST_META = 400  # characters of a value of the meta data

NO_TOKENIZER = (
    "there are no tokens without a tokenizer: --tokenizer FOLDER, --config STAGE.yaml or --run RUN adds tokens, "
    "the loss mask and their counts"
)


def visible(text: str) -> str:
    """Text without control characters: those below 32 become their pictures (``\\x1b`` is \u241b), others \ufffd."""
    return _HIDDEN.sub(lambda match: chr(0x2400 + ord(match[0])) if ord(match[0]) < 32 else "\ufffd", text)


def picture_words(view: PictureView) -> str:
    """``756 x 378 PNG, 4.1 kB, 1 row x 2 columns of tiles of 378 px + thumbnail``: width first, then rows first."""
    if view.problem:
        return f"{view.format}, {size_words(view.num_bytes)}: {view.problem}"
    rows, columns = view.grid.rows, view.grid.cols
    grid = f"{rows} row{'s' * (rows > 1)} x {columns} column{'s' * (columns > 1)}"
    tiles = f"{grid} of tiles of {view.tile_size} px" + " + thumbnail" * view.thumbnail
    return f"{view.width} x {view.height} {view.format}, {size_words(view.num_bytes)}, {tiles}"


def document_words(view: DocumentView) -> str:
    """``121 tokens, 30 labelled, 64 image tokens``."""
    return f"{view.num_tokens:,} tokens, {view.num_labelled:,} labelled, {view.num_image:,} image tokens"


def size_words(num_bytes: int) -> str:
    """Bytes with a unit of 1000."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:.1f} MB"


def count_words(counts: Counter[Any], most: int = 4) -> str:
    """``thinking: 75, non-thinking: 25``; the rest is counted together."""
    named = counts.most_common(most)
    rest = len(counts) - len(named)
    words = [f"{_key(key)}: {count:,}" for key, count in named]
    others = f"{rest} others: {counts.total() - sum(count for _, count in named):,}"
    return ", ".join([*words, others] if rest else words)


def _key(key: Any) -> str:
    return " x ".join(map(str, key)) if isinstance(key, tuple) else str(key).replace("_", "-")


def extra_words(view: SampleView) -> dict[str, str]:
    """Reference answer and meta data by name, long ones cut."""
    extra = {} if view.answer is None else {"answer": view.answer}
    for key, value in view.meta.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
        extra[key] = text if len(text) <= _MOST_META else f"{text[:_MOST_META]}... ({len(text):,} characters)"
    return extra


def measures_of(one: SourceStatistics) -> list[str]:
    """The measures that say something: no tiles without pictures, characters only where there are no tokens."""
    hidden = {"characters"} if one.values.get("tokens") else set()
    hidden |= set() if one.sizes else {"tiles"}
    return [measure for measure in MEASURES if one.values.get(measure) and measure not in hidden]


def range_words(one: SourceStatistics, measure: str) -> list[str]:
    """Smallest value, median, largest: ``["24", "median 35", "53"]``; ``["all 2"]`` where there is one value."""
    low, high = min(one.values[measure]), max(one.values[measure])
    return [f"all {low:,}"] if low == high else [f"{low:,}", f"median {one.median(measure):,}", f"{high:,}"]


def total_words(found: Inspection) -> str:
    """``300 samples in 1 shards, 0.4 MB``."""
    folder = found.folder
    return f"{len(folder):,} samples in {folder.num_shards} shards, {folder.num_bytes / 1e6:.1f} MB"


def problem_words(found: Inspection) -> list[str]:
    """Everything that is wrong, a line each: shards and samples by name, then how many samples in all."""
    lines, unusable = list(found.problems), found.num_unusable
    if found.num_unreadable or unusable:
        lines.append(f"{found.num_unreadable:,} samples cannot be read, {unusable:,} training would leave out")
    return lines


def fact_words(one: SourceStatistics) -> dict[str, str]:
    """What a source comes to, by name."""
    share = one.labelled_share
    facts = {
        "samples": f"{one.samples:,}",
        "modes": count_words(one.modes),
        "labelled share": f"{share:.1%}" if share is not None else "",
        "image tokens": f"{one.image_tokens:,}" if one.image_tokens else "",
        "pictures": f"{one.sizes.total():,}" if one.sizes else "none",
        "sizes": count_words(one.sizes),
        "unusable": f"{one.unusable:,}" if one.unusable else "",
        "longer than a row": f"{one.overlong:,}" if one.overlong else "",
    }
    return {name: text for name, text in facts.items() if text}
