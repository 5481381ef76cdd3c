"""The loader: the same batches whatever the number of workers and wherever a run was cut; nothing lost in silence."""

import itertools
import json
import logging
from collections import Counter

import pytest
import torch
from tiny import question
from tiny_data import ROW, Talks, Texts, documents, flat, loader_of

from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackedLoader, PackingPlan
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Ref, Sample, Source


def take(loader: PackedLoader, num: int | None = None) -> list:
    """The first batches. The iterator is dropped at once, and its workers with it."""
    iterator = iter(loader)
    batches = list(itertools.islice(iterator, num))
    del iterator
    return batches


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


# ---------------------------------------------------------------- exact resume
@pytest.fixture(scope="module")
def unbroken() -> list:
    """Two rounds of an epoch, as training sees them: each batch is marked."""
    loader, out = trainee(0), []
    for _ in range(2):
        for batch in loader:
            loader.mark(batch.cursor)
            out.append(flat(batch))
    return out


def trainee(workers: int, **options) -> PackedLoader:
    sources = [Talks(60, broken=(5, 6), long=(9,)), Texts(30, long=(3, 4))]
    return loader_of(sources, workers, overlong="split", thinking_shares=(0.5, None), epochs=1.5, **options)


def rest(loader: PackedLoader, num: int) -> list:
    """``num`` more batches, over the ends of rounds."""
    out: list = []
    while len(out) < num:
        for batch in loader:
            loader.mark(batch.cursor)
            out.append(flat(batch))
            if len(out) == num:
                break
    return out


def test_a_second_round_is_another(unbroken):
    first = len(unbroken) // 2
    count = Counter(name for batch in unbroken for name in batch["sample_ids"])
    assert unbroken[0]["ids"] != unbroken[first]["ids"]
    assert set(count.values()) == {3}, "twice 1.5 passes are three of each sample"
    assert len(count) > 87


@pytest.mark.parametrize("after", [1, 2, 7, "last but one", "last"])
def test_a_resume_sees_the_batches_of_an_unbroken_run(after, unbroken):
    """Cut after some batches of the first round, and at its end, where a second follows."""
    resume(after, 0, 0, unbroken)


@pytest.mark.parametrize("after", [7, "last"])
@pytest.mark.parametrize(("before_cut", "after_cut"), [(1, 1), (2, 2), (0, 2), (2, 0)])
def test_a_resume_may_change_the_number_of_workers(after, before_cut, after_cut, unbroken):
    resume(after, before_cut, after_cut, unbroken)


def resume(after: int | str, before_cut: int, after_cut: int, unbroken: list) -> None:
    """``after`` batches with ``before_cut`` workers, then the rest from a state in a new loader."""
    number = {"last but one": len(unbroken) // 2 - 1, "last": len(unbroken) // 2}.get(after, after)
    broken = trainee(before_cut)
    head = take(broken, number + 1)[:number]  # one more is fetched, as Lightning does, and lost
    assert [flat(batch) for batch in head] == unbroken[:number]
    state = json.loads(json.dumps(broken.state_at(head[-1].cursor)))
    resumed = trainee(after_cut)
    resumed.load_state_dict(state)
    assert rest(resumed, len(unbroken) - number) == unbroken[number:]


def test_skipped_samples_are_counted_once_over_a_resume():
    whole = trainee(0)
    wanted = len(take(whole))
    for after in (1, wanted - 2):
        broken = trainee(0)
        take(broken, after + 2)
        resumed = trainee(0)
        resumed.load_state_dict(broken.state_at(after))
        assert len(take(resumed)) == wanted - after - 1
        assert resumed.skipped == whole.skipped
    assert sum(whole.skipped.values()) >= 4


def test_a_state_from_before_the_first_batch_is_the_start():
    broken = trainee(0)
    start = json.loads(json.dumps(broken.marked))
    wanted = [flat(batch) for batch in take(broken, 3)]
    assert broken.marked == start
    assert broken.state_at(-1) == start
    resumed = trainee(0)
    resumed.load_state_dict(start)
    assert [flat(batch) for batch in take(resumed, 3)] == wanted


def test_a_state_after_a_resume_and_before_its_first_batch_is_the_one_loaded():
    broken = trainee(0)
    take(broken, 4)
    resumed = trainee(0)
    resumed.load_state_dict(broken.state_at(2))
    assert resumed.marked == broken.state_at(2)
    take(resumed, 2)
    assert resumed.state_at(2) == broken.state_at(2)
    assert resumed.state_at(3) == broken.state_at(3)


def test_a_batch_long_gone_has_no_state():
    loader = loader_of()
    take(loader, 1)
    with pytest.raises(KeyError):
        loader.state_at(7)
    loader = loader_of(epochs=None)
    take(loader, 30)
    with pytest.raises(KeyError):
        loader.state_at(3)


def test_without_marks_every_iteration_is_the_same():
    """As validation needs it."""
    loader = trainee(0)
    first, second = take(loader), take(loader)
    assert [flat(batch) for batch in first] == [flat(batch) for batch in second]
    once = trainee(0)
    take(once)
    assert loader.skipped == once.skipped


def test_a_cut_epoch_goes_on_where_the_model_stands(unbroken):
    """``limit_train_batches`` ends an epoch early; the next must not begin with the same batches."""
    loader, out = trainee(0), []
    for _ in range(3):
        for batch in take(loader, 3)[:2]:
            loader.mark(batch.cursor)
            out.append(flat(batch))
    assert out == unbroken[:6]


def test_the_pieces_of_a_split_text_are_encoded_once_at_a_resume(monkeypatch):
    def texts():
        return loader_of([Texts(1, long=(0,))], rows=1, overlong="split", row_tokens=16)

    broken = texts()
    wanted = [flat(batch) for batch in take(broken)]
    broken = texts()
    take(broken, 2)
    state = broken.state_at(1)
    assert len(state["waiting"]) > 5
    resumed = texts()
    resumed.load_state_dict(state)
    calls: list = []
    fetch = resumed.fetcher.fetch
    monkeypatch.setattr(resumed.fetcher, "fetch", lambda ref: calls.append(ref) or fetch(ref))
    assert [flat(batch) for batch in take(resumed)] == wanted[2:]
    assert len(calls) == 1


def test_a_waiting_sample_that_broke_since_is_named():
    broken = loader_of([Talks(40)])
    take(broken, 2)
    state = broken.state_at(0)
    gone = state["waiting"][0][0][2]
    resumed = loader_of([Talks(40, broken=(gone,))])
    resumed.load_state_dict(state)
    with pytest.raises(DataError, match=f"sample {gone} could be used when the run was saved and cannot now"):
        take(resumed)


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


def test_a_rank_resumes_its_own_share():
    for rank in (0, 1):
        whole = loader_of(epochs=4, rank=rank, world_size=2)
        wanted = [flat(batch) for batch in take(whole)]
        broken = loader_of(epochs=4, rank=rank, world_size=2)
        take(broken, 4)
        resumed = loader_of(epochs=4, rank=rank, world_size=2)
        resumed.load_state_dict(broken.state_at(2))
        assert [flat(batch) for batch in take(resumed)] == wanted[3:]
