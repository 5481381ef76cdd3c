"""The mixture: shares kept at every moment, epochs exact, orders that are permutations, a state that is complete."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from bluelm_lightning.data.mixture import Mixture, shuffled_order
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Ref


def take(mixture: Mixture, num: int | None = None) -> list:
    return list(itertools.islice(mixture, num))


# ---------------------------------------------------------------- shares
def weightings() -> list[list[float]]:
    rng = np.random.default_rng(0)
    drawn = [rng.dirichlet(np.full(n, spread)) + 1e-6 for n in (2, 3, 5, 8, 20) for spread in (0.1, 0.3, 1, 5)]
    return [[9.0] * 3 + [1.0] * 9, [2.0**-n for n in range(9)], [1000.0, 1.0], [3, 2, 1], [1.0] * 7, *map(list, drawn)]


@pytest.mark.parametrize("weights", weightings(), ids=lambda weights: f"{len(weights)}-{max(weights):.3g}")
def test_every_share_is_kept_within_one_sample_at_every_moment(weights):
    """Taking the source with the most credit, as round-robin schedulers do, misses the first of these by 1.25."""
    mixture = Mixture([10] * len(weights), weights)
    shares = np.array(weights) / sum(weights)
    for drawn in range(1, 600):
        next(mixture)
        assert np.abs(np.array(mixture.counts) - shares * drawn).max() < 1


def test_by_default_every_sample_weighs_the_same():
    mixture = Mixture([30, 10])
    assert Counter(ref.source for ref in take(mixture, 40)) == {0: 30, 1: 10}
    mixture = Mixture([30, 10], epochs=[1, 9])  # 30 and 90
    assert Counter(ref.source for ref in take(mixture, 40)) == {0: 10, 1: 30}


def test_small_sources_are_spread_out():
    places = [place for place, ref in enumerate(take(Mixture([900, 100]), 1000)) if ref.source == 1]
    gaps = np.diff(places)
    assert gaps.min() >= 8
    assert gaps.max() <= 12


# ---------------------------------------------------------------- epochs
def test_epochs_exhaust_exactly():
    refs = take(Mixture([7, 5, 4], epochs=[2, 1, 0.5], weights=[1, 1, 5]))
    count = Counter((ref.source, ref.index) for ref in refs)
    assert [count[0, index] for index in range(7)] == [2] * 7
    assert [count[1, index] for index in range(5)] == [1] * 5
    assert sum(count[2, index] for index in range(4)) == 2
    assert set(count.values()) == {1, 2}
    assert {(ref.epoch, ref.index) for ref in refs if ref.source == 0} == {(e, i) for e in (0, 1) for i in range(7)}


def test_an_exhausted_source_leaves_the_others_to_their_shares():
    mixture = Mixture([4, 1000, 1000], weights=[10, 2, 1], epochs=[1, None, None])
    sources = [ref.source for ref in take(mixture, 3004)]
    assert sources.count(0) == 4
    assert abs(sources.count(1) - 2000) <= 2
    for drawn in range(10, 3004):
        later = sources[10:drawn]
        assert abs(later.count(1) - 2 / 3 * len(later)) <= 2


def test_a_new_round_goes_on_with_other_orders():
    mixture = Mixture([20, 10], epochs=[1, 1])
    first = take(mixture)
    assert take(mixture) == []
    mixture.renew()
    second = take(mixture)
    assert len(first) == len(second) == 30
    assert {ref.epoch for ref in first} == {0}
    assert {ref.epoch for ref in second} == {1}
    assert sorted(ref.index for ref in second if ref.source == 0) == list(range(20))
    assert [ref.index for ref in first] != [ref.index for ref in second]
    assert [ref.source for ref in first] == [ref.source for ref in second]


def test_a_half_epoch_takes_the_other_half_in_the_next_round():
    mixture = Mixture([10], epochs=[0.5])
    halves = take(mixture)
    mixture.renew()
    halves += take(mixture)
    assert sorted(ref.index for ref in halves) == list(range(10))


# ---------------------------------------------------------------- state
@pytest.mark.parametrize("epochs", [None, [3, 2, 4]])
@pytest.mark.parametrize("after", [0, 1, 37, 100])
def test_a_state_goes_on_where_it_was_taken(after, epochs):
    def mixture():
        return Mixture([30, 20, 7], [0.5, 0.3, 0.2], epochs, [[10, 10, 10], None, [3, 4]], seed=4, window=1)

    whole = mixture()
    take(whole, after)
    state = json.loads(json.dumps(whole.state_dict()))  # plain lists and numbers
    wanted = take(whole, 150)
    resumed = mixture()
    take(resumed, 11)  # whatever it was doing before
    resumed.load_state_dict(state)
    assert take(resumed, 150) == wanted


def test_a_state_knows_its_round():
    mixture = Mixture([5], epochs=[1])
    take(mixture)
    mixture.renew()
    take(mixture, 2)
    resumed = Mixture([5], epochs=[1])
    resumed.load_state_dict(mixture.state_dict())
    assert take(resumed) == take(mixture)


def test_a_state_does_not_change_afterwards():
    mixture = Mixture([5, 5])
    state = mixture.state_dict()
    before = json.dumps(state)
    take(mixture, 3)
    mixture.renew()
    assert json.dumps(state) == before
    mixture.load_state_dict(state)
    take(mixture, 3)
    assert json.dumps(state) == before


# ---------------------------------------------------------------- orders
BLOCKS = [5, 1, 9, 3, 7, 2, 6, 4, 8, 5]


@pytest.mark.parametrize("blocks", [None, [50], BLOCKS])
@pytest.mark.parametrize("window", [1, 3, 16])
def test_an_order_is_a_permutation(blocks, window):
    order = shuffled_order(50, blocks, window, (0, 0, 0))
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))


@pytest.mark.parametrize("window", [1, 3])
def test_an_order_stays_within_a_few_blocks_at_a_time(window):
    order = shuffled_order(50, BLOCKS, window, (0, 0, 0))
    block_of = np.repeat(np.arange(10), BLOCKS)
    start = 0
    visited: list[int] = []
    while start < 50:
        group = list(dict.fromkeys(block_of[order[start:]].tolist()))[:window]
        num = sum(BLOCKS[block] for block in group)
        assert set(block_of[order[start : start + num]].tolist()) == set(group)
        visited += group
        start += num
    assert sorted(visited) == list(range(10))
    assert visited != list(range(10)), "blocks come in random order too"


def test_orders_differ_by_seed_by_source_and_by_epoch():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    for blocks in (None, BLOCKS):
        orders = [tuple(shuffled_order(50, blocks, 3, key)) for key in keys]
        assert len(set(orders)) == 4
        assert orders == [tuple(shuffled_order(50, blocks, 3, key)) for key in keys]
    seeds = [[ref.index for ref in take(Mixture([50], seed=seed), 100)] for seed in (0, 1)]
    assert seeds[0] != seeds[1]
    assert seeds[0][:50] != seeds[0][50:]


def test_without_shuffling_samples_come_in_their_order():
    refs = take(Mixture([3, 3], epochs=[2, 2], shuffle=False))
    for source in (0, 1):
        assert [(ref.epoch, ref.index) for ref in refs if ref.source == source] == [
            (e, i) for e in (0, 1) for i in range(3)
        ]


# ---------------------------------------------------------------- settings
BAD = {
    "no source": ({"lengths": []}, "data.sources: every source needs at least one sample"),
    "an empty source": ({"lengths": [3, 0]}, r"data.sources: .*sizes are \[3, 0\]"),
    "zero weight": ({"lengths": [3, 3], "weights": [1, 0]}, r"data.sources.weight: .*got \[1, 0\]"),
    "negative weight": ({"lengths": [3], "weights": [-1.0]}, "data.sources.weight: "),
    "no number": ({"lengths": [3], "weights": [float("nan")]}, "data.sources.weight: "),
    "infinite": ({"lengths": [3], "weights": [float("inf")]}, "data.sources.weight: "),
    "less than a sample": ({"lengths": [3], "epochs": [0.1]}, r"data.sources.epochs: \[0.1\] of \[3\] samples leave a"),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(**settings)


# ---------------------------------------------------------------- processes
def part(rank: int, world: int, lengths=(50, 31, 4), **options) -> Mixture:
    mixture = Mixture(lengths, seed=1, **options)
    mixture.share_out(rank, world)
    return mixture


@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_share_every_pass_out_whatever_each_of_them_draws(world):
    """Their shares differ, and each goes on until it has nothing left: every sample came twice, none to two at once."""
    parts = [part(rank, world, epochs=[2] * 3, weights=[1.0, rank + 1.0, 5.0]) for rank in range(world)]
    taken = [take(mixture) for mixture in parts]
    everything = [ref for refs in taken for ref in refs]
    assert sorted(everything) == sorted(
        Ref(i, e, n) for i, num in enumerate((50, 31, 4)) for e in (0, 1) for n in range(num)
    )
    assert max(map(len, taken)) - min(map(len, taken)) <= 3, "one a source"
    one = take(part(0, 1, epochs=[2] * 3))
    assert sorted(one) == sorted(everything)


def test_a_rare_source_does_not_come_to_all_processes_at_once():
    parts = [take(part(rank, 10, [10_000, 10_000], weights=[9.0, 1.0]), 40) for rank in range(10)]
    at_once = [sum(refs[step].source for refs in parts) for step in range(40)]
    assert at_once == [1] * 40
    assert all(sum(ref.source for ref in refs) == 4 for refs in parts)


def test_a_state_fits_the_processes_it_was_saved_for():
    mixture = part(1, 2)
    state = mixture.state_dict()
    part(2, 3).load_state_dict(state)  # nothing was drawn yet
    wanted = take(mixture, 9)[5:]
    begun = part(1, 2)
    take(begun, 5)
    again = part(1, 2)
    again.load_state_dict(begun.state_dict())
    assert take(again, 4) == wanted
    for rank, world in ((0, 1), (1, 3)):
        with pytest.raises(ConfigError, match=r"saved for 2 processes that draw for themselves, there are \d"):
            part(rank, world).load_state_dict(begun.state_dict())
