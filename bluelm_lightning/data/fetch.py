"""Reading and encoding by reference: what a loader worker does, and all that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.pairs import EncodedPair
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Encoded, Ref, Sample, Skipped, Source

_SMALL = 1 << 16  # bytes below which a tensor travels from a worker by value: a shared-memory file costs more


class SampleFetcher:
    """Reads and encodes by reference. A map-style data set: all that a worker needs, and no more.

    Args:
        sources: anything indexable that returns samples.
        encoder: turns a sample into ids and tiles.
        seed: for choices that differ from pass to pass.
        thinking_shares: for each source, the share of passes in which a trace is kept; ``None`` keeps every trace.
        cut_shares: for each source, the share of passes in which a kept trace is cut at a random place and closed.
        stated_shares: for each source, the share of passes in which the prompt states a budget that the trace keeps.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        seed: int = 0,
        thinking_shares: Sequence[float | None] = (),
        cut_shares: Sequence[float] = (),
        stated_shares: Sequence[float] = (),
    ) -> None:
        self.sources, self.encoder, self.seed = list(sources), encoder, seed
        self.thinking_shares = list(thinking_shares) or [None] * len(self.sources)
        self.cut_shares = list(cut_shares) or [0.0] * len(self.sources)
        self.stated_shares = list(stated_shares) or [0.0] * len(self.sources)

    def __getitem__(self, refs: list[Ref]) -> list[Encoded | Skipped]:
        return [self.fetch(ref) for ref in refs]

    def fetch(self, ref: Ref) -> Encoded | Skipped:
        source = self.sources[ref.source]
        sample_id, name = f"{ref.source}:{ref.index}", getattr(source, "name", str(ref.source))
        try:
            sample = source[ref.index]
            sample_id, name = sample.id, sample.source
            return self.encoder(self._choose_mode(sample, ref), self._choose_cut(ref), self._choose_statement(ref))
        except DataError as error:
            return Skipped(sample_id, name, error.reason if error.where == sample_id else str(error))

    def _choose_cut(self, ref: Ref) -> float | None:
        """Which share of a trace is kept, uniform in [0, 1); None: all of it."""
        rng = Random(f"cut {self.seed}/{tuple(ref)}")
        return rng.random() if rng.random() < self.cut_shares[ref.source] else None

    def _choose_statement(self, ref: Ref) -> float | None:
        """How much larger than the trace the stated budget is, uniform in [1, 1.5); None: none is stated."""
        rng = Random(f"state {self.seed}/{tuple(ref)}")
        return 1 + rng.random() / 2 if rng.random() < self.stated_shares[ref.source] else None

    def _choose_mode(self, sample: Sample, ref: Ref) -> Sample:
        share = self.thinking_shares[ref.source]
        if share is None or Random(f"{self.seed}/{tuple(ref)}").random() < share:
            return sample
        return self.encoder.without_traces(sample)


class ShippedFetcher(SampleFetcher):
    """In a worker process: small tensors leave as NumPy arrays, by value."""

    def __getitem__(self, refs: list[Ref]) -> list[Any]:
        return [self.map(item, _to_numpy) for item in super().__getitem__(refs)]

    @staticmethod
    def map(item: Encoded | Skipped, fn: Any) -> Encoded | Skipped:
        if isinstance(item, Skipped):
            return item
        changed = {name: fn(getattr(item, name)) for name in ("ids", "labels", "tiles", "image_positions")}
        if isinstance(item, EncodedPair):
            changed["parts"] = tuple(ShippedFetcher.map(part, fn) for part in item.parts)
        return replace(item, **changed)


def _to_numpy(tensor: torch.Tensor) -> Any:
    return tensor.numpy() if tensor.nbytes <= _SMALL else tensor
