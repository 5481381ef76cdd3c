"""Key data resampling: policies by hand, caps, the ledger's file, and what the loader makes of it."""

import re
from collections import Counter

import lightning as L
import numpy as np
import pytest
import torch
from callback_runs import SAMPLES, fit, tokenizer_folder  # noqa: F401  fixtures
from tiny_data import Talks, Texts, flat, loader_of, take

from bluelm_lightning.callbacks import KeyDataResampling, LossSpikes, SharePoint, ShareSchedule
from bluelm_lightning.data.admission import Admission
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.policies import (
    ExcessLoss,
    FixedSchedule,
    InverseFrequency,
    LearningProgress,
    PassRateBand,
    SourceFigures,
)
from bluelm_lightning.data.resampler import KeyDataResampler
from bluelm_lightning.data.sample_ledger import SampleLedger
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.reproduce.claim_8 import loss_at, tokens_to
from bluelm_lightning.types import Ref, SharePolicy

A = SourceFigures(100, 0.75, 1, [(10, 3.0), (30, 2.0)], (0.0, 0.5))
B = SourceFigures(400, 0.25, 1, [(5, 9.0), (10, 4.5), (10, 4.0)], (1.0, 1.0, 1.0, 0.0))
TWO = {"a": A, "b": B}


# ---------------------------------------------------------------- policies
def test_policies_by_hand():
    # over two periods the loss of a fell by 1 in 20 tokens (from 5 to 25), of b by 0.5 in 10: 0.05 nats a token each
    progress = LearningProgress(floor=0.2, periods=2)
    assert [progress.score("", known) for known in (A, B)] == pytest.approx([0.05, 0.05])
    # over three, the losses of b at 2.5, 10 and 20 tokens: least squares
    slope = LearningProgress(floor=0.2, periods=3).score("", B)
    assert slope == pytest.approx(-np.polyfit([2.5, 10, 20], [9.0, 4.5, 4.0], 1)[0])
    shares = LearningProgress(floor=0.2, periods=3).shares(TWO, 0)
    assert shares["a"] == pytest.approx(0.2 * 0.75 + 0.8 * 0.75 * 0.05 / (0.75 * 0.05 + 0.25 * slope))
    # a lies 0.5 above its reference, b 4 above none: pulls 0.375 and 1
    excess = ExcessLoss({"a": 1.5}, floor=0.0).shares(TWO, 0)
    assert excess == pytest.approx({"a": 0.375 / 1.375, "b": 1 / 1.375})
    # of a one of two lies in the band, of b none of four: (1 + 1) / 4 and (0 + 1) / 6
    band = PassRateBand(0.1, 0.9, floor=0.0).shares(TWO, 0)
    assert band["a"] == pytest.approx(0.75 / 2 / (0.75 / 2 + 0.25 / 6))
    assert InverseFrequency(0.5).shares(TWO, 0) == {"a": 10, "b": 20}
    assert InverseFrequency(1.0).shares(TWO, 0) == {"a": 1, "b": 1}
    points = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 2.0}]
    assert FixedSchedule(points).shares(TWO, 0) == points[1], "the second stage"
    assert FixedSchedule(points, [0, 10]).shares(TWO, 5) == {"a": 0.5, "b": 1.0}
    assert FixedSchedule(points, [0, 10]).shares(TWO, 99) == points[1]


def test_what_is_not_known_yet_moves_nothing():
    new = {"a": SourceFigures(10, 0.6), "b": SourceFigures(10, 0.4)}
    for policy in (LearningProgress(), ExcessLoss({}), PassRateBand()):
        assert policy.shares(new, 0) == pytest.approx({"a": 0.6, "b": 0.4})
    half = {"a": A, "b": SourceFigures(10, 0.25, 0, [(9, 1.0)])}  # no score: the mean of the others
    assert LearningProgress(0.0).shares(half, 0) == pytest.approx({"a": 0.75, "b": 0.25})
    still = {name: SourceFigures(10, 0.5, 0, [(9, 1.0), (9, 1.0)]) for name in "ab"}
    assert LearningProgress().shares(still, 0) == {"a": 0.5, "b": 0.5}, "nothing is learnt: the prior"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LearningProgress(1.5), "floor"),
        (lambda: LearningProgress(periods=1), "not between 2 and 16"),
        (lambda: PassRateBand(0.9, 0.1), "low=0.9, high=0.1"),
        (lambda: InverseFrequency(2.0), "not between 0 and 1"),
        (lambda: FixedSchedule([{"a": 1.0}, {"b": 1.0}]), "same sources"),
        (lambda: FixedSchedule([{"a": 1.0}], [3]), "one step each"),
        (lambda: ExcessLoss({"c": 1.0}).shares(TWO, 0), "'c' is no source; there are a, b"),
        (lambda: FixedSchedule([{"a": 1.0}]).shares(TWO, 0), r"the data has \['a', 'b'\]"),
    ],
)
def test_settings_that_make_no_sense(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("shares", [{"b": 1}, None, {"a": 1, "b": None}, {"a": 2, "b": -1}, {"a": 0, "b": 0}])
def test_a_policy_that_returns_no_shares_is_named(shares):
    own = type("Own", (SharePolicy,), {"shares": lambda self, figures, step: shares})()
    wrong = "leave out a" if shares == {"b": 1} else "cannot be used"
    said = re.escape(f"trainer.callbacks.policy: the shares that Own returned {wrong}: {shares};")
    with pytest.raises(ConfigError, match=said + ".* none negative and one above 0"):
        KeyDataResampler(["a", "b"], [Texts(3)] * 2, [1, 1], own)


# ---------------------------------------------------------------- caps
def test_no_sample_is_drawn_more_often_than_its_limit():
    before = np.array([0, 3, 1, 2, 0])
    mixture = Mixture([5, 4], weights=[3.0, 1.0], seed=1, admission=Admission([3, 2], [before, None]))
    drawn = Counter((ref.source, ref.index) for ref in mixture)
    assert [drawn[0, i] for i in range(5)] == [3, 0, 2, 1, 3]
    assert [drawn[1, i] for i in range(4)] == [2] * 4
    assert mixture.spent
    assert not mixture.endless


def test_what_a_limit_takes_from_a_source_goes_to_the_others():
    mixture = Mixture([2, 100], weights=[0.5, 0.5], seed=0, admission=Admission([2, None]))
    drawn = [next(mixture).source for _ in range(60)]
    assert drawn[:8].count(0) == 4, "its share, while it lasts"
    assert drawn[8:].count(0) == 0
    assert not mixture.spent


@pytest.mark.parametrize("workers", [1, 2])
def test_caps_hold_with_workers_and_over_a_resume(workers):
    def loader(workers):
        made = loader_of([Talks(12), Texts(8)], workers, epochs=None)
        made.mixture.admission = Admission([2, 3], [None, np.arange(8) % 2])
        return made

    wanted = [flat(b) for b in take(loader(0))]
    first, second = loader(0), loader(workers)
    for batch in take(first, 3):
        first.mark(batch.cursor)
    second.load_state_dict(first.marked)
    assert [flat(b) for b in take(second)] == wanted[3:]
    seen = Counter(name for batch in wanted for name in batch["sample_ids"])
    assert seen == {**{f"talks-{i}": 2 for i in range(12)}, **{f"texts-{i}": 3 - i % 2 for i in range(8)}}
    second.mark(len(wanted) - 1)
    with pytest.raises(DataError, match="seen max_repeats times"):
        take(second, 1)


# ---------------------------------------------------------------- ledger
def ledger_of(path, run, *seen):
    ledger = SampleLedger.begin(path, run, {"a": (4, "f")})
    before = ledger.state_dict()
    for index, times, loss in seen:
        ledger.sources["a"].record(index, times, ledger.clock + 5, loss=loss)
    ledger.clock += 10
    ledger.save(path, run, before)
    return ledger


def test_the_ledger_goes_from_stage_to_stage(tmp_path):
    path = tmp_path / "runs" / "ledger.npz"
    ledger_of(path, "one", (0, 1, 2.0), (2, 1, 4.0))
    second = ledger_of(path, "two", (0, 2, 1.0))
    assert second.stage == 1
    a = second.sources["a"].columns
    assert a["seen"].tolist() == [2, 0, 1, 0]
    assert a["loss"][0] == 1.5, "half of the old, half of the new"
    assert (second.clock - a["last"]).tolist() == [5, 20, 15, 20]
    again = ledger_of(path, "two", (3, 1, 1.0))  # begun anew in the same folder: its own figures do not count
    assert again.sources["a"].columns["seen"].tolist() == [1, 0, 1, 1]
    assert again.stage == 1
    other = SampleLedger.begin(path, "three", {"b": (2, "g")})
    assert list(other.sources) == ["a", "b"], "what this stage does not read is kept"
    assert other.most_seen(["a"], 2) == [("a", 0, 1), ("a", 2, 1)]


def test_ledgers_that_do_not_fit(tmp_path):
    path = tmp_path / "ledger.npz"
    ledger_of(path, "one")
    with pytest.raises(ConfigError, match="knows the source 'a' with 4 other samples than these 5"):
        SampleLedger.begin(path, "two", {"a": (5, "f")})
    whole = path.read_bytes()
    for broken in (b"PK half a file", whole[: len(whole) // 2], b"\x93NUMPY" + whole):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match="holds no ledger"):
            SampleLedger.begin(path, "two", {"a": (4, "f")})
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(ConfigError, match="holds no ledger"):
        SampleLedger.begin(path.with_suffix(".npy"), "two", {"a": (4, "f")})


def test_parts_of_a_document_are_one_observation():
    resampler = KeyDataResampler(["t"], [Texts(3)], [1.0], InverseFrequency())
    refs = [Ref(0, 0, 1), Ref(0, 0, 1), Ref(0, 0, 2)]
    resampler.observe(0, refs, torch.tensor([4.0, 2.0, 9.0]), torch.tensor([2, 1, 3]), torch.tensor([3, 2, 4]))
    resampler.gather()
    held = resampler.ledger.sources["t"]
    assert held.columns["loss"][1:].tolist() == [2.0, 3.0]
    assert held.columns["seen"].tolist() == [0, 1, 1]
    assert held.totals.tokens == 9


def test_a_loss_that_is_not_finite_is_no_loss():
    resampler = KeyDataResampler(["t"], [Texts(4)], [1.0], LearningProgress())
    refs = [Ref(0, 0, index) for index in range(4)]
    for step, losses in enumerate(([4.0, 8.0, 6.0, 2.0], [float("nan"), float("inf"), -float("inf"), 4.0])):
        resampler.observe(step, refs, torch.tensor(losses), torch.full((4,), 2), torch.full((4,), 3))
        resampler.decide(step + 1)
        refs = [ref._replace(epoch=1) for ref in refs]
    held = resampler.ledger.sources["t"]
    assert held.columns["seen"].tolist() == [2] * 4
    assert held.columns["loss"].tolist() == [2.0, 4.0, 3.0, 1.5]
    assert held.totals.periods == [[12.0, 2.5], [12.0, 2.0]], "the mean of the one that is finite"
    assert (held.totals.tokens, held.totals.labelled) == (24, 10)


def test_shares_that_were_asked_for_too_early_stop_the_run():
    resampler = KeyDataResampler(["t"], [Texts(3)], [1.0], InverseFrequency(), lag=2)
    resampler.value_at(4)
    with pytest.raises(RuntimeError, match="asked for before they were decided"):
        resampler.decide(3)


# ---------------------------------------------------------------- the callback
def test_a_run_shows_its_shares_and_what_it_repeats(fit, tmp_path):  # noqa: F811
    callback = KeyDataResampling(LearningProgress(), every_n_steps=2, ledger=str(tmp_path / "ledger.npz"))
    run = fit(callback, steps=8, folder=tmp_path / "run")
    assert run.recorder.column("resampling/share/tiny") == [1.0] * 8
    epochs = run.recorder.column("resampling/epochs/tiny")
    assert epochs == sorted(epochs)
    assert epochs[-1] > 1
    page = (tmp_path / "run" / "resampling.md").read_text()
    assert "| tiny | 12 | 1.000 | 1.000 |" in page
    assert "s0" in page
    assert (tmp_path / "run" / "resampling.png").stat().st_size > 2000
    held = SampleLedger.begin(tmp_path / "ledger.npz", "next", {"tiny": (12, "")}).sources["tiny"]
    trained = run.trainer.datamodule._train.marked["mixture"]["counts"][0]
    assert trained - 12 < held.columns["seen"].sum() <= trained, "what was drawn, less what waits to be packed"
    losses = run.recorder.column("train/loss")
    assert [period[1] for period in held.totals.periods] == pytest.approx(
        [sum(losses[n : n + 2]) / 2 for n in range(0, 8, 2)], rel=0.02
    ), "means of two steps; those over tokens and over steps differ a little"
    assert np.isfinite(held.columns["loss"]).all()


def test_limits_hold_over_two_stages(fit, tmp_path):  # noqa: F811
    """Each run is a stage of its own folder; three times in all, whatever the stages."""
    seen = Counter()

    class Counting(KeyDataResampling):
        def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
            seen.update(batch.sample_ids)
            super().on_train_batch_end(trainer, stage, outputs, batch, batch_idx)

    def stage(name, steps):
        callback = Counting(FixedSchedule([{"tiny": 1.0}]), 2, str(tmp_path / "ledger.npz"))
        fit(callback, steps=steps, folder=tmp_path / name, max_repeats=3)

    stage("one", 3)
    assert min(seen.values()) < 3
    with pytest.raises(DataError, match="max_repeats"):
        stage("two", 99)
    assert max(seen.values()) == 3
    assert sum(seen.values()) > 2 * len(SAMPLES), "what waited to be packed when the first stage ended is lost"


def test_a_step_that_is_skipped_for_its_loss_does_not_end_the_run(fit):  # noqa: F811
    class Poison(L.Callback):
        """The third step alone has no finite loss."""

        def on_train_batch_start(self, trainer, stage, batch, batch_idx):
            self.weight = stage.vlm.decoder.output_weight.data
            self.kept = self.weight.clone()
            if batch_idx == 2:
                self.weight.fill_(float("nan"))

        def on_before_optimizer_step(self, trainer, stage, optimizer):
            self.weight.copy_(self.kept)

    spikes, callback = LossSpikes(), KeyDataResampling(LearningProgress(), every_n_steps=2)
    fit(spikes, Poison(), callback, steps=6)
    assert spikes.skipped == 1
    held = callback.resampler.ledger.sources["tiny"]
    assert np.isfinite(held.totals.periods).all()
    assert len(held.totals.periods) == 3


@pytest.mark.parametrize("name", ["blocked/ledger.npz", "folder"])
def test_a_ledger_that_cannot_be_written_is_refused_before_training(fit, tmp_path, name):  # noqa: F811
    (tmp_path / "blocked").write_text("a file where the folder should be")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=rf"trainer\.callbacks\.ledger: .*{name}"):
        fit(KeyDataResampling(InverseFrequency(), ledger=str(tmp_path / name)))
    assert list((tmp_path / "folder").iterdir()) == []
    fit(KeyDataResampling(InverseFrequency(), ledger=str(tmp_path / "new" / "ledger.npz")), steps=1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ledger.npz"]


def test_two_callbacks_cannot_both_move_the_shares(fit, tmp_path):  # noqa: F811
    both = ShareSchedule([SharePoint(0, {"tiny": 1.0})]), KeyDataResampling(InverseFrequency())
    for pair in (both, both[::-1]):
        with pytest.raises(ConfigError, match="two callbacks move the shares"):
            fit(*pair)


# ---------------------------------------------------------------- the claim
def test_tokens_to_a_loss():
    points = [(10.0, 4.0), (20.0, 3.0), (30.0, 2.0)]
    assert loss_at(points, 25) == 3.0
    assert tokens_to(points, 2.5) == 25
    assert tokens_to(points, 1.0) == 30, "never: all of them"
