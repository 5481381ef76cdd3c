"""One pass over shards: views of the first samples of each source, statistics of all that are read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.inspection.folder import ShardFolder
from bluelm_lightning.inspection.pictures import view_picture
from bluelm_lightning.inspection.reading import Reading
from bluelm_lightning.inspection.statistics import SourceStatistics
from bluelm_lightning.inspection.views import SampleView, view_of
from bluelm_lightning.types import Encoded, Sample

MOST_NAMED = 20  # problems that are named one by one


@dataclass(frozen=True)
class Choice:
    """Which samples are read, and how many are shown.

    Args:
        count: samples of each source that are shown.
        samples: most samples that are read, at even distances over the shards; None: all.
        seed: draw them at random instead.
        source: of this source alone.
        statistics: read them all; False stops when enough of each source is there to be shown.

    Raises:
        ConfigError: a number below 0.
    """

    count: int = 3
    samples: int | None = 1000
    seed: int | None = None
    source: str | None = None
    statistics: bool = True

    def __post_init__(self) -> None:
        for key, value in (("--count", self.count), ("--samples", self.samples or 0)):
            if value < 0:
                raise ConfigError(f"{value} is below 0", key)

    def order(self, total: int) -> Iterable[int]:
        """Numbers of samples in the order in which they are read. A source is looked for among all."""
        most = total if self.samples is None or self.source is not None else min(self.samples, total)
        if self.seed is not None:
            return Random(self.seed).sample(range(total), most)
        return range(total) if most == total else [n * total // most for n in range(most)]


@dataclass
class Inspection:
    """What was found."""

    folder: ShardFolder
    reading: Reading
    choice: Choice
    views: list[SampleView] = field(default_factory=list)
    statistics: dict[str, SourceStatistics] = field(default_factory=lambda: defaultdict(SourceStatistics))
    problems: list[str] = field(default_factory=list)  # of shards, and the first of samples
    num_unreadable: int = 0  # samples that are damaged
    num_read: int = 0  # samples, damaged ones included; with a source, those of it
    stopped: bool = False  # before the end: there was enough

    @property
    def num_unusable(self) -> int:
        """Samples that can be read and that training would leave out."""
        return sum(one.unusable for one in self.statistics.values())

    @property
    def counted(self) -> str:
        """Which samples the statistics speak of."""
        of = f" of source {self.choice.source}" if self.choice.source is not None else ""
        if self.num_read == len(self.folder) or (of and not self.stopped):
            return f"all {self.num_read:,} samples{of}"
        spread = not self.stopped and self.choice.seed is None
        how = "at even distances" if spread else "the first"
        how = how if self.choice.seed is None else f"drawn with seed {self.choice.seed}"
        return f"{self.num_read:,} samples{of} out of {len(self.folder):,}, {how}"

    def add(self, sample: Sample, shown: bool) -> None:
        """Counts a sample, and keeps its view if it is ``shown``."""
        reading, problem, note, encoded = self.reading, "", "", list[tuple[str, Encoded]]()
        statistics = self.statistics[sample.source]
        if self.choice.statistics or shown:
            try:
                encoded = reading.documents(sample)
                note, left_out = reading.misfit([document for _, document in encoded])
                problem, note = (note, "") if left_out else ("", note)
            except DataError as error:
                problem = error.reason
        if problem:
            statistics.unusable += 1
            self._name(f"{sample.where or sample.id}: {problem}")
        if shown:
            self.views.append(view_of(sample, reading, encoded, problem, note))
        pictures = [view_picture(data, reading.tiling) for data in sample.images]
        statistics.add(sample, pictures, [one for _, one in encoded], None if reading.asks else reading.row_tokens)

    def add_damaged(self, error: DataError) -> None:
        """Counts and names a sample that cannot be read."""
        self.num_unreadable += 1
        self._name(str(error))

    def _name(self, problem: str) -> None:
        if len(self.problems) < MOST_NAMED + len(self.folder.problems):
            self.problems.append(problem)


def collect(
    folder: ShardFolder, reading: Reading, choice: Choice, follow: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Inspection:
    """Reads samples once.

    Args:
        folder: the shards.
        reading: what training makes of a sample.
        choice: which are read and shown.
        follow: wraps the numbers of the samples, for a progress bar.

    Raises:
        ConfigError: there is no sample of the source that was asked for.
    """
    found = Inspection(folder, reading, choice, problems=list(folder.problems))
    shown, wanted = Counter[str](), set(folder.sources) if choice.source is None else {choice.source}
    for item in folder.read(follow(choice.order(len(folder)))):
        if isinstance(item, DataError):
            found.num_read += choice.source is None
            found.add_damaged(item)
        elif choice.source in (None, item.source):
            found.num_read += 1
            shown[item.source] += 1
            found.add(item, shown[item.source] <= choice.count)
        enough = not choice.statistics and wanted and all(shown[name] >= choice.count for name in wanted)
        if enough or (choice.source is not None and found.num_read == choice.samples):
            found.stopped = True
            break
    if choice.source is not None and not found.num_read:
        names = ", ".join(sorted(folder.sources)) or "not listed in its manifest"
        raise ConfigError(f"{folder.path} has no sample of {choice.source!r}; its sources are {names}", "--source")
    return found
