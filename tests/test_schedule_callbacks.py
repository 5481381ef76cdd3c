"""Rows, shares and rotary scaling that move with the step."""

from collections import Counter

import pytest
import torch
from callback_runs import fit, tokenizer_folder  # noqa: F401  fixtures
from tiny import random_doc, tiny_vlm
from tiny_data import Talks, Texts, flat, loader_of, take

from bluelm_lightning.callbacks import LengthPhase, LengthSchedule, RopeSwitch, SharePoint, ShareSchedule
from bluelm_lightning.data.loader import PackingPlan
from bluelm_lightning.data.packing import pack
from bluelm_lightning.data.token_shares import sample_weights
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.types import Encoded, Ref

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}


class Growing:
    """Rows of 96, then of 192 from batch 5; shares of the two sources from 1:0 to 0:1 over ten batches."""

    def plan_at(self, cursor):
        return PackingPlan(96, 2) if cursor < 5 else PackingPlan(192, 1)

    def weights_at(self, cursor):
        done = min(1.0, cursor / 10)
        return [1 - done, done]


def moving_loader(workers: int):
    return loader_of([Talks(60), Texts(60)], workers, epochs=None, course=Growing())


# ---------------------------------------------------------------- the loader
def test_rows_and_shares_move_with_the_batch():
    batches = take(moving_loader(0), 14)
    assert [tuple(b.ids.shape) for b in batches] == [(2, 96)] * 5 + [(1, 192)] * 9
    sources = [Counter(b.sources) for b in batches]
    assert set(sources[0]) == {"talks"}, "its share is everything at first"
    assert set(sources[-1]) == {"texts"}


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(workers):
    wanted = [flat(b) for b in take(moving_loader(0), 14)]
    assert [flat(b) for b in take(moving_loader(workers), 14)] == wanted


def test_processes_train_on_samples_of_their_own_while_shares_move():
    """Their samples differ in length, so one has drawn further than the other when the shares of a batch come."""

    class Slow(Growing):
        def weights_at(self, cursor):
            return [1.0 - cursor / 50, 0.1 + cursor / 50]

    sources, options = [Talks(2000), Texts(2000)], {"epochs": None, "course": Slow(), "world_size": 2}
    batches = [take(loader_of(sources, rank=rank, **options), 40) for rank in (0, 1)]
    refs = [{ref for batch in mine for ref in batch.refs} for mine in batches]
    assert min(map(len, refs)) > 150
    assert not refs[0] & refs[1]


@pytest.mark.parametrize("after", [3, 5, 8])
def test_a_resume_sees_the_same_batches(after):
    wanted = [flat(b) for b in take(moving_loader(0), 14)]
    first, second = moving_loader(0), moving_loader(0)
    for batch in take(first, after):
        first.mark(batch.cursor)
    second.load_state_dict(first.marked)
    assert [flat(b) for b in take(second, 14 - after)] == wanted[after:]


def test_pieces_of_a_long_text_that_waited_survive_growing_rows():
    """Split for rows of 96 and saved, they are laid out when rows hold 192: the pieces must be the same."""
    long = {"sources": [Texts(12, long=tuple(range(12)))], "overlong": "split", "epochs": None}

    class Course(Growing):
        def plan_at(self, cursor):
            return PackingPlan(96, 1, None, "split") if cursor < 5 else PackingPlan(192, 1, None, "split")

        def weights_at(self, cursor):
            return None

    wanted = [flat(b) for b in take(loader_of(**long, course=Course()), 9)]
    first, second = loader_of(**long, course=Course()), loader_of(**long, course=Course())
    for batch in take(first, 5):
        first.mark(batch.cursor)
    second.load_state_dict(first.marked)
    assert [flat(b) for b in take(second, 4)] == wanted[5:]


# ---------------------------------------------------------------- the callbacks
def test_the_run_follows_the_callbacks(fit):  # noqa: F811
    seen = []

    class Seeing(Stage):
        def training_step(self, batch, batch_idx):
            seen.append(tuple(batch.ids.shape))
            return super().training_step(batch, batch_idx)

    lengths = LengthSchedule([LengthPhase(0, 48, 2), LengthPhase(2, 96, 1)])
    shares = ShareSchedule([SharePoint(0, {"tiny": 1.0})])
    run = fit(lengths, shares, stage=Seeing(tiny_vlm()), accumulate_grad_batches=2)
    assert seen == [(2, 48)] * 4 + [(1, 96)] * 4, "by optimizer step, not by micro-batch"
    assert run.recorder.column("data/row_tokens") == [48, 48, 96, 96]
    assert run.recorder.column("data/share/tiny") == [1.0] * 4


def test_shares_move_linearly():
    schedule = ShareSchedule([SharePoint(0, {"long": 1, "short": 3}), SharePoint(10, {"long": 9, "short": 1})])
    assert schedule.value_at(0) == {"long": 0.25, "short": 0.75}
    assert schedule.value_at(5)["long"] == pytest.approx((0.25 + 0.9) / 2)
    assert schedule.value_at(10) == schedule.value_at(99) == {"long": 0.9, "short": 0.1}


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: LengthSchedule([LengthPhase(1, 96)]), "begin at 0"),
        (lambda: LengthSchedule([LengthPhase(0, 96), LengthPhase(5, 48)]), "shrink from 96 to 48"),
        (lambda: ShareSchedule([SharePoint(0, {"a": 1}), SharePoint(5, {"b": 1})]), "step 5 names other"),
        (lambda: ShareSchedule([SharePoint(0, {"a": 0.0})]), "none above"),
    ],
)
def test_schedules_that_make_no_sense(build, said):
    with pytest.raises(ConfigError, match=said):
        build()


def test_shares_of_a_source_that_is_not_there(fit):  # noqa: F811
    with pytest.raises(ConfigError, match="'other' stands in one of the two alone; the sources are tiny"):
        fit(ShareSchedule([SharePoint(0, {"tiny": 1, "other": 1})]))


def test_a_resume_with_another_schedule_is_refused(fit, tmp_path):  # noqa: F811
    run = fit(LengthSchedule([LengthPhase(0, 48, 2)]))
    run.trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match="rows_schedule"):
        fit(LengthSchedule([LengthPhase(0, 96, 2)]), steps=6, ckpt_path=tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"data.rows_schedule: .* now has None: the batches would differ"):
        fit(steps=6, ckpt_path=tmp_path / "a.ckpt")
    more = {"steps": 6, "ckpt_path": tmp_path / "a.ckpt", "accumulate_grad_batches": 2}
    with pytest.raises(ConfigError, match=r"trainer.accumulate_grad_batches: this run had 1 when it was saved"):
        fit(LengthSchedule([LengthPhase(0, 48, 2)]), **more)


def test_steps_that_would_end_early_are_refused(fit):  # noqa: F811
    lengths = LengthSchedule([LengthPhase(0, 48, 2)])
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches: 2 with limit_train_batches 3 would end a step"):
        fit(lengths, accumulate_grad_batches=2, limit_train_batches=3)


# ---------------------------------------------------------------- RoPE -> YaRN
def test_positions_are_plain_before_the_switch_and_scaled_after_it():
    batch = pack([[random_doc(40), random_doc(20, tiles=1)]], 64, 0)
    plain, scaled = tiny_vlm(), tiny_vlm(rope=YARN)
    want_plain, want_scaled = plain(batch), scaled(batch)
    assert not torch.equal(want_plain, want_scaled)
    scaled.decoder.scale_rope(False)
    assert torch.equal(scaled(batch), want_plain)
    scaled.decoder.scale_rope(True)
    assert torch.equal(scaled(batch), want_scaled)


def test_the_callback_switches_at_its_step(fit):  # noqa: F811
    factors = []

    class Seeing(Stage):
        def training_step(self, batch, batch_idx):
            factors.append(round(self.vlm.decoder.model.base_model.rotary_emb.attention_scaling, 3))
            return super().training_step(batch, batch_idx)

    fit(RopeSwitch(2), stage=Seeing(tiny_vlm(rope=YARN)))
    assert factors == [1.0, 1.0, 1.208, 1.208]  # YaRN's 0.1 ln 8 + 1


def test_a_switch_needs_a_scaling(fit):  # noqa: F811
    with pytest.raises(ConfigError, match="set for example rope_type: yarn"):
        fit(RopeSwitch(0))


# ---------------------------------------------------------------- shares of tokens
def test_weights_of_tokens_count_what_a_sample_holds():
    loader = loader_of([Texts(40), Texts(40, long=tuple(range(40)))], row_tokens=512)
    short, long = sample_weights([1.0, 1.0], loader.fetcher)
    num = [sum(len(loader.fetcher.sources[s][i].text) for i in range(40)) for s in (0, 1)]
    assert short / long == pytest.approx(num[1] / num[0], rel=0.1), "a token for a token, not a sample for a sample"


@pytest.mark.parametrize("kind", ["overlong", "broken"])
def test_what_is_left_out_counts_for_no_token_of_its_source(kind):
    """Some of the second source are skipped: it is drawn more often."""
    half = {"long": tuple(range(0, 40, 2))} if kind == "overlong" else {"broken": tuple(range(0, 40, 2))}
    loader = loader_of([Talks(40), Talks(40, **half)], row_tokens=96)
    _, other = sample_weights([1.0, 1.0], loader.fetcher, loader.plan)
    found = [loader.fetcher.fetch(Ref(1, 0, index)) for index in range(40)]
    kept = [len(item) for item in found if isinstance(item, Encoded) and len(item) <= 96]
    assert len(kept) < 40
    assert other == pytest.approx(40 / sum(kept))
    cut = PackingPlan(96, 2, overlong="split")
    texts = loader_of([Texts(40), Texts(40, long=tuple(range(40)))], row_tokens=96)
    short, long = sample_weights([1.0, 1.0], texts.fetcher, cut)
    assert long < short, "texts that are cut keep all their tokens"
