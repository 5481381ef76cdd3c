"""Sources and loaders shared by the tests of the data rooms. The sources are plain classes: no base class of ours."""

import itertools
from functools import cache
from random import Random

from tiny import TILE, png, tiny_encoder

from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackedLoader, PackingPlan
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import PackedBatch, Sample

ROW = 96
picture = cache(png)  # making one costs more than encoding it


class Talks:
    """``num`` short conversations of different lengths; some with a picture, some with a trace."""

    name = "talks"

    def __init__(
        self, num: int = 40, broken: tuple[int, ...] = (), long: tuple[int, ...] = (), lost: tuple[int, ...] = ()
    ) -> None:
        self.num, self.broken, self.long, self.lost = num, set(broken), set(long), set(lost)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Sample:
        if index in self.lost:
            raise DataError("is no record", f"{self.name}:{index}")
        rng = Random(f"{self.name}/{index}")
        wide = rng.choice([1, 1, 2])
        images = [picture(TILE, wide * TILE, rng.randrange(4))] * (rng.random() < 0.4)
        words = rng.choices(
            ["the", "sum", "is", "a", "red", "circle", "12"], k=60 if index in self.long else rng.randint(1, 9)
        )
        answer = {"role": "assistant", "content": str(index)}
        if rng.random() < 0.5:
            answer["thinking"] = " ".join(words)
        turns = [{"role": "user", "content": "<image>" * len(images) + " ".join(words)}, answer]
        if index in self.broken:
            images = [b"broken"]
            turns[0]["content"] = "<image>"
        return Sample(id=f"{self.name}-{index}", source=self.name, messages=turns, images=images)


class Texts(Talks):
    """``num`` documents without pictures."""

    name = "texts"

    def __getitem__(self, index: int) -> Sample:
        words = Random(f"texts/{index}").randint(1, 30) if index not in self.long else 150
        return Sample(
            id=f"texts-{index}", source="texts", text=" ".join(["a red circle", str(index)] * words)[: 6 * words]
        )


def loader_of(
    sources: list | None = None, workers: int = 0, rows: int = 2, epochs: float | None = 1, weights=None, **options
) -> PackedLoader:
    """Batches of ``rows`` rows of 96 tokens from 40 conversations and 25 texts, one epoch unless told otherwise."""
    sources = sources or [Talks(40), Texts(25)]
    plan = {
        name: options.pop(name)
        for name in ("overlong", "max_tiles", "lookahead", "row_tokens", "balance")
        if name in options
    }
    fetcher = SampleFetcher(sources, tiny_encoder(), options.pop("seed", 0), options.pop("thinking_shares", ()))
    mixture = Mixture([len(source) for source in sources], weights, [epochs] * len(sources), seed=3)
    return PackedLoader(
        fetcher, mixture, PackingPlan(**{"row_tokens": ROW, "rows": rows, **plan}), 0, workers, **options
    )


def flat(batch: PackedBatch) -> dict:
    """A batch as something that ``==`` compares."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(batch).items()}


def documents(batches: list[PackedBatch]) -> list[str]:
    return [name for batch in batches for name in batch.sample_ids]


def take(loader: PackedLoader, num: int | None = None) -> list:
    """The first batches. The iterator is dropped at once, and its workers with it."""
    iterator = iter(loader)
    batches = list(itertools.islice(iterator, num))
    del iterator
    return batches
