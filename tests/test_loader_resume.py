"""The loader resumed: the same batches wherever a run was cut, and nothing counted twice."""

import json
from collections import Counter

import numpy as np
import pytest
from processes import in_ranks
from tiny_data import Talks, Texts, flat, loader_of, take

from bluelm_lightning.data.admission import Admission
from bluelm_lightning.data.loader import PackedLoader
from bluelm_lightning.errors import DataError


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


def test_a_rank_resumes_its_own_share():
    for rank in (0, 1):
        whole = loader_of(epochs=4, rank=rank, world_size=2)
        wanted = [flat(batch) for batch in take(whole)]
        broken = loader_of(epochs=4, rank=rank, world_size=2)
        take(broken, 4)
        resumed = loader_of(epochs=4, rank=rank, world_size=2)
        resumed.load_state_dict(broken.state_at(2))
        assert [flat(batch) for batch in take(resumed)] == wanted[3:]


# ---------------------------------------------------------------- two processes
def test_processes_ask_each_other_equally_often_whatever_one_of_them_met(tmp_path):
    """One has skipped a sample and the other none, and they read different numbers of chunks ahead."""

    def work(rank: int) -> None:
        def loader(epochs):
            made = loader_of([Talks(13, broken=(2,)), Texts(8)], epochs=epochs, rank=rank, world_size=2)
            if epochs is None:
                made.mixture.admission = Admission([2, 3], [None, np.arange(8) % 2])
            return made

        def share(name, batches):
            (tmp_path / f"{name}{rank}").write_text(json.dumps([batch.sample_ids for batch in batches]))

        for name, epochs in (("epochs", 2), ("capped", None)):
            first, second = loader(epochs), loader(epochs)
            first.mark(take(first, 2)[-1].cursor)
            second.load_state_dict(first.marked)
            share(f"{name}-whole", take(loader(epochs)))
            share(f"{name}-rest", take(second))

    in_ranks(work, tmp_path)

    def batches(name):
        return [json.loads((tmp_path / f"{name}{rank}").read_text()) for rank in (0, 1)]

    for name, wanted in (("epochs", 2), ("capped", None)):
        whole, rest = batches(f"{name}-whole"), batches(f"{name}-rest")
        assert len(whole[0]) == len(whole[1])
        assert [ids[2:] for ids in whole] == rest
        seen = Counter(sample for ids in whole for batch in ids for sample in batch)
        talks = {f"talks-{i}": 2 for i in range(13) if i != 2}
        assert seen == {**talks, **{f"texts-{i}": wanted or 3 - i % 2 for i in range(8)}}
