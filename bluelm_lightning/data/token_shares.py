"""Shares of tokens: what they are as shares of samples, when the samples of one source are longer than another's."""

from __future__ import annotations

from collections.abc import Sequence

from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.types import Encoded, Ref

MEASURED = 64  # samples of each source, evenly over it


def sample_weights(token_weights: Sequence[float], fetcher: SampleFetcher) -> list[float]:
    """Weights of samples that give each source its share of tokens: ``weight / mean tokens of a sample``.

    Args:
        token_weights: share of tokens of each source, on any scale.
        fetcher: of the sources; encodes up to 64 samples of each.
    """
    return [weight / mean_tokens(fetcher, number) for number, weight in enumerate(token_weights)]


def mean_tokens(fetcher: SampleFetcher, number: int) -> float:
    """Mean tokens of the samples of source ``number``; 1 when none of those measured can be used."""
    num = len(fetcher.sources[number])
    count = min(num, MEASURED)
    items = [fetcher.fetch(Ref(number, 0, i * num // count)) for i in range(count)]
    lengths = [len(item) for item in items if isinstance(item, Encoded)]
    return sum(lengths) / len(lengths) if lengths else 1.0
