"""The loader: the same batches whatever the number of workers and wherever a run was cut; nothing lost in silence."""

import logging
from collections import Counter

import pytest
import torch
from tiny import question
from tiny_data import ROW, Talks, Texts, documents, flat, loader_of, take

from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackingPlan
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Ref, Sample, Source


# ---------------------------------------------------------------- what comes out
def test_one_epoch_sees_every_sample_once():
    batches = take(loader_of())
    assert Counter(documents(batches)) == {
        **{f"talks-{n}": 1 for n in range(40)},
        **{f"texts-{n}": 1 for n in range(25)},
    }
    assert [batch.cursor for batch in batches] == list(range(len(batches)))
    assert {batch.ids.shape for batch in batches} == {(2, ROW)}
    assert len(batches) > 8


@pytest.mark.parametrize(("epochs", "times"), [(3, {3}), (1.5, {1, 2}), (0.5, {0, 1})])
def test_finite_epochs_see_every_sample_exactly_so_often(epochs, times):
    count = Counter(documents(take(loader_of(epochs=epochs))))
    for name, num in (("talks", 40), ("texts", 25)):
        each = [count[f"{name}-{n}"] for n in range(num)]
        assert set(each) == times
        assert sum(each) == round(epochs * num)


def test_batches_keep_to_rows_and_tiles():
    batches = take(loader_of(max_tiles=3, epochs=4))
    assert max(len(batch.tiles) for batch in batches) == 3
    assert set(Counter(documents(batches)).values()) == {4}


def test_a_loader_without_end_goes_on():
    batches = take(loader_of(epochs=None), 40)
    assert len(batches) == 40
    count = Counter(documents(batches))
    assert len(count) == 65
    assert min(count.values()) >= 2


def test_a_plain_class_is_a_source():
    assert isinstance(Talks(), Source)
    assert "Source" not in [base.__name__ for base in Talks.__mro__]


def test_traces_are_kept_in_their_share_of_the_passes():
    class Thoughtful(Talks):
        def __getitem__(self, index: int) -> Sample:
            sample = question("12", "yes", id=str(index))
            sample.messages[-1]["thinking"] = "is it"
            return sample

    source, encoder = Thoughtful(), loader_of().fetcher.encoder
    refs = [Ref(0, epoch, index) for epoch in range(30) for index in range(40)]
    for share, low, high in ((0.0, 0, 0), (0.25, 250, 350), (1.0, 1200, 1200), (None, 1200, 1200)):
        fetcher = SampleFetcher([source], encoder, 7, [share])
        lengths = [len(doc) for doc in fetcher[refs]]
        assert low <= lengths.count(max(lengths) if share != 0 else -1) <= high
        assert lengths == [len(doc) for doc in SampleFetcher([source], encoder, 7, [share])[refs]], "drawn anew"
        if share == 0.25:
            passes = torch.tensor(lengths).view(30, 40)
            assert all(len(passes[:, index].unique()) == 2 for index in range(40)), "each sample in both modes"
    assert source[3].messages[-1]["thinking"] == "is it", "the sample itself is left alone"


# ---------------------------------------------------------------- workers
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(workers):
    sources = [Talks(60, broken=(5,), long=(9,)), Texts(30, long=(3,))]
    wanted = [flat(batch) for batch in take(loader_of(sources, 0, overlong="split"))]
    state = torch.get_rng_state()
    loader = loader_of(sources, workers, overlong="split")
    assert [flat(batch) for batch in take(loader)] == wanted
    assert torch.equal(torch.get_rng_state(), state), "loading draws from the global random state"
    assert loader.skipped == {"talks": 2}


def test_large_tensors_arrive_from_workers_too():
    """Above 64 KiB they come through shared memory."""
    whole = [take(loader_of([Texts(3, long=(0, 1, 2))], workers, row_tokens=9000, rows=1), 1)[0] for workers in (0, 1)]
    assert flat(whole[0]) == flat(whole[1])

    class Long(Talks):
        def __getitem__(self, index: int) -> Sample:
            return Sample(id=str(index), source="long", text="é" * 6000)  # 12,000 tokens of 8 bytes

    whole = [take(loader_of([Long(2)], workers, row_tokens=13_000, rows=1)) for workers in (0, 1)]
    assert [flat(batch) for batch in whole[0]] == [flat(batch) for batch in whole[1]]


def test_an_error_of_a_source_stops_the_run_in_workers_too():
    class Torn(Talks):
        def __getitem__(self, index: int) -> Sample:
            raise RuntimeError("disk on fire")

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="disk on fire"):
            take(loader_of([Torn()], workers))


# ---------------------------------------------------------------- what cannot be used
def reported(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_and_overlong_samples_are_reported_and_counted(workers, caplog):
    loader = loader_of([Talks(20, broken=(5, 8), long=(2,)), Texts(9, long=(4,))], workers)
    names = set(documents(take(loader)))
    said = reported(caplog)
    assert len(said) == 4
    for number in (5, 8):
        assert [line for line in said if line.startswith(f"skipped sample talks-{number}: image 0: ")]
    for name in ("talks-2", "texts-4"):
        assert [
            line for line in said if line.startswith(f"skipped sample {name}: ") and "tokens, a row holds 96" in line
        ]
        assert name not in names
    assert loader.skipped == {"talks": 3, "texts": 1}
    assert len(names) == 25


def test_a_sample_that_cannot_be_read_at_all_counts_for_its_source(caplog):
    class Damaged(Talks):
        name = "damaged"

        def __getitem__(self, index: int) -> Sample:
            if index == 3:
                raise DataError("half a file", "train-000001.tar:000003")
            return super().__getitem__(index)

    loader = loader_of([Talks(5), Damaged(9)])
    assert len(documents(take(loader))) == 13
    assert loader.skipped == {"damaged": 1}
    assert reported(caplog) == ["skipped sample 1:3: train-000001.tar:000003: half a file"]


def test_a_broken_sample_of_a_source_without_a_name_counts_for_what_it_says_itself():
    class Nameless:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Sample:
            return question(images=1, source="web", id=str(index)) if index else question("<image>", source="web")

    loader = loader_of([Nameless()])
    assert len(documents(take(loader))) == 3
    assert loader.skipped == {"web": 1}


def test_too_many_tiles_for_a_batch_are_reported(caplog):
    loader = loader_of([Talks(40)], max_tiles=1)
    names = documents(take(loader))
    left_out = [line for line in reported(caplog) if line.endswith("2 tiles, a batch holds 1")]
    assert len(left_out) == 40 - len(names) == loader.skipped["talks"] > 0


def test_overlong_texts_are_split_and_lose_nothing():
    texts = Texts(6, long=(1, 4))
    loader = loader_of([texts], overlong="split", rows=1)
    batches = take(loader)
    count = Counter(name.split("#")[0] for name in documents(batches))
    assert set(count) == {f"texts-{n}" for n in range(6)}
    assert count["texts-1"] == 4
    whole = [loader.fetcher.encoder(texts[n]) for n in range(6)]
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, whole))
    labels = torch.cat([batch.labels.flatten() for batch in batches])
    wanted = torch.cat([doc.labels for doc in whole])
    assert sorted(labels[labels >= 0].tolist()) == sorted(wanted[wanted >= 0].tolist())
    assert not loader.skipped


def test_pictures_are_never_split(caplog):
    loader = loader_of([Talks(40, long=tuple(range(40)))], overlong="split")
    kept = {name.split("#")[0] for name in documents(take(loader))}
    assert 0 < len(kept) < 40
    assert loader.skipped["talks"] == 40 - len(kept)
    assert all(not Talks(40, long=tuple(range(40)))[int(name.split("-")[1])].images for name in kept)


def test_overlong_samples_can_stop_the_run():
    with pytest.raises(DataError, match=r"sample talks-2: \d+ tokens, a row holds 96; raise data.row_tokens or set"):
        take(loader_of([Talks(20, long=(2,))], overlong="error"))


@pytest.mark.parametrize("workers", [0, 1])
def test_sources_with_nothing_usable_stop_the_run(workers):
    bad = Talks(30, broken=tuple(range(30)))
    with pytest.raises(DataError, match=r"100 samples in a row cannot be used; the last: .*image 0"):
        take(loader_of([bad], workers, epochs=None))
    with pytest.raises(DataError, match=r"no sample can be used, skipped by source: {'talks': 30}"):
        take(loader_of([bad], workers, epochs=1))


def test_good_samples_reset_the_count_of_bad_ones():
    half = Talks(200, broken=tuple(range(0, 200, 2)))
    loader = loader_of([half], epochs=3, max_consecutive_skips=25)
    assert len(documents(take(loader))) == 300
    assert loader.skipped["talks"] == 300


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"data\.overlong: 'crop' is not one of skip, split, error"):
        PackingPlan(96, overlong="crop")


# ---------------------------------------------------------------- processes
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_disjoint_samples_that_together_are_everything(world):
    seen = [Counter(documents(take(loader_of(epochs=2, rank=rank, world_size=world)))) for rank in range(world)]
    together = sum(seen, Counter())
    assert set(together.values()) == {2}
    assert len(together) == 65
    sizes = [sum(count.values()) for count in seen]
    assert max(sizes) - min(sizes) <= 1
    once = [set(documents(take(loader_of(rank=rank, world_size=world)))) for rank in range(world)]
    assert sum(map(len, once)) == len(set.union(*once)) == 65
