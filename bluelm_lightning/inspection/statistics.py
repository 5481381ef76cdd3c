"""What the samples of each source come to, counted one by one: memory does not grow with their number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bluelm_lightning.inspection.pictures import PictureView
from bluelm_lightning.inspection.reading import mode_of
from bluelm_lightning.inspection.views import turns_of
from bluelm_lightning.types import IGNORE, Encoded, Sample

MEASURES = ("tokens", "labelled", "tiles", "turns", "characters")  # of one sample; labelled: tokens
_MOST_BARS = 16


class Bar(NamedTuple):
    """``samples`` have a value from ``low`` to ``high``, both included."""

    low: int
    high: int
    samples: int


@dataclass
class SourceStatistics:
    """One source. Both sides of a preference count; tokens are counted where there is a tokenizer."""

    samples: int = 0
    unusable: int = 0  # training would leave them out; they count as samples
    overlong: int = 0  # more tokens than a row has
    image_tokens: int = 0
    modes: Counter[str] = field(default_factory=Counter)  # see `reading.mode_of`
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) of pictures, pixels
    values: dict[str, Counter[int]] = field(default_factory=dict)  # measure -> value -> samples

    def add(
        self, sample: Sample, pictures: list[PictureView], documents: list[Encoded], row_tokens: int | None = None
    ) -> None:
        """Counts a sample.

        Args:
            sample: as it is stored.
            pictures: its pictures.
            documents: what training makes of it; empty where that is unknown.
            row_tokens: tokens of a row, if known.
        """
        self.samples += 1
        self.modes[mode_of(sample)] += 1
        self.sizes.update((view.width, view.height) for view in pictures if not view.problem)
        turns = turns_of(sample)
        found = {
            "tiles": sum(view.num_tiles for view in pictures),
            "turns": len(turns),
            "characters": sum(len(turn.text) + len(turn.thinking) for turn in turns),
        }
        if documents:
            found["tokens"] = sum(map(len, documents))
            found["labelled"] = sum(int((document.labels != IGNORE).sum()) for document in documents)
            self.image_tokens += sum(document.image_positions.numel() for document in documents)
            self.overlong += row_tokens is not None and found["tokens"] > row_tokens
        for name, value in found.items():
            self.values.setdefault(name, Counter())[value] += 1

    def total(self, measure: str) -> int:
        """Sum over the samples; 0 where it was not counted."""
        return sum(value * count for value, count in self.values.get(measure, {}).items())

    def median(self, measure: str) -> int | None:
        """The lower median; None where it was not counted."""
        values = self.values.get(measure, Counter())
        left = (values.total() + 1) // 2
        for value in sorted(values):
            left -= values[value]
            if left <= 0:
                return value
        return None

    @property
    def labelled_share(self) -> float | None:
        """Labelled tokens / tokens; None where there are none."""
        tokens = self.total("tokens")
        return self.total("labelled") / tokens if tokens else None

    def histogram(self, measure: str) -> list[Bar]:
        """See :func:`histogram`."""
        return histogram(self.values.get(measure, Counter()))


def histogram(values: Counter[int]) -> list[Bar]:
    """At most 17 bars of one width, which is 1, 2 or 5 times a power of ten; one value is one bar.

    Bars begin at multiples of the width and reach from the smallest value to the largest, empty ones included.
    """
    if not values:
        return []
    low, high = min(values), max(values)
    widths = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
    width = next(width for width in widths if (high - low) // width < _MOST_BARS)
    first = low // width
    counts = [0] * (high // width - first + 1)
    for value, count in values.items():
        counts[value // width - first] += count
    return [Bar((first + n) * width, (first + n + 1) * width - 1, count) for n, count in enumerate(counts)]
