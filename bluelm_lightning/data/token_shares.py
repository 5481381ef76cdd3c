"""Shares of tokens: what they are as shares of samples, when the samples of one source are longer than another's."""

from __future__ import annotations

from collections.abc import Sequence

from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackingPlan, is_cut, misfit
from bluelm_lightning.data.pairs import parts_of
from bluelm_lightning.types import Encoded, Ref

MEASURED = 64  # samples of each source, evenly over it


def sample_weights(
    token_weights: Sequence[float], fetcher: SampleFetcher, plan: PackingPlan | None = None
) -> list[float]:
    """Weights of samples that give each source its share of tokens: ``weight / mean tokens of a sample``.

    Args:
        token_weights: share of tokens of each source, on any scale.
        fetcher: of the sources; encodes up to 64 samples of each.
        plan: a sample that it leaves out counts as none of the tokens, as one that cannot be read; default: all fit.
    """
    return [weight / mean_tokens(fetcher, number, plan) for number, weight in enumerate(token_weights)]


def mean_tokens(fetcher: SampleFetcher, number: int, plan: PackingPlan | None = None) -> float:
    """Mean tokens that a sample of source ``number`` adds; 1 when none of those measured can be used."""
    num = len(fetcher.sources[number])
    count = min(num, MEASURED)
    items = [fetcher.fetch(Ref(number, 0, i * num // count)) for i in range(count)]
    total = sum(len(item) for item in items if isinstance(item, Encoded) and _stays(item, plan))
    return total / count if total else 1.0


def _stays(item: Encoded, plan: PackingPlan | None) -> bool:
    parts = parts_of(item)
    return plan is None or is_cut(parts, plan) or misfit(parts, plan) is None
