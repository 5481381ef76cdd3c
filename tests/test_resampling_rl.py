"""Key data resampling of prompts: the band of pass rates moves the shares, and the ledger goes from stage to stage."""

from collections import Counter

import pytest
from rl_runs import Diary, Questions, data_of, fit, stage_of

from bluelm_lightning.callbacks import KeyDataResampling
from bluelm_lightning.data.ledger import PassRateLedger
from bluelm_lightning.data.policies import PassRateBand
from bluelm_lightning.datamodules import PromptDataModule, SourceSpec
from bluelm_lightning.rl.rewards import Reward, RewardRouter
from bluelm_lightning.types import Score


class Half(Reward):
    """Prompts of the source ``half`` are solved by every second rollout, the others by each."""

    def score(self, rollouts):
        return [Score(float(r.prompt.sample.source != "half" or i % 2)) for i, r in enumerate(rollouts)]


class OnceWithout(Half):
    """As Half, but one prompt is never judged, and of the ``first`` collection nothing teaches."""

    def __init__(self, first):
        self.asked, self.first = Counter(), first

    def score(self, rollouts):
        first, self.first = self.first, False
        self.asked.update({r.group: int(r.prompt.sample.id[1:]) for r in rollouts}.values())
        scores = [Score(float(i % 2)) for i in range(len(rollouts))]
        if first:
            return [Score(1.0)] * len(rollouts)
        return [Score(None) if r.prompt.sample.id == "q1" else score for r, score in zip(rollouts, scores)]


class Asked(Diary):
    """Shares of the source ``half`` among the prompts of each collection."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, stage, outputs, batch, batch_idx)
        sources = [item.rollout.prompt.sample.source for item in stage.scored]
        self.shares.append(sources.count("half") / max(len(sources), 1))


def run(tmp_path, folder, steps, ahead=False, ledger=None, file=None, floor=0.1, ckpt_path=None):
    data_of(tmp_path)  # writes the tokenizer
    sources = [SourceSpec(source=Questions(12), name=name, weight=1.0) for name in ("solved", "half")]
    data = PromptDataModule(str(tmp_path / "tokenizer"), sources, prompts_per_step=4, ledger=ledger)
    stage = stage_of(rewards=RewardRouter({"half": Half()}), plan={"ahead": ahead})
    resampling = KeyDataResampling(PassRateBand(floor=floor), 2, file and str(file))
    asked = Asked()
    fit(stage, data, tmp_path / folder, steps, asked, resampling, ckpt_path=ckpt_path)
    return asked, resampling, data


@pytest.mark.parametrize("ahead", [False, True])
def test_the_band_raises_the_share_of_prompts_that_teach_also_over_a_resume(tmp_path, ahead):
    whole, resampling, _ = run(tmp_path, "whole", 9, ahead)
    assert resampling.resampler.value_at(99)["half"] > 0.7
    assert sum(whole.shares[:3]) / 3 == 0.5
    assert sum(whole.shares[5:]) / 4 > 0.65
    first, _, _ = run(tmp_path, "part", 3, ahead)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    second, again, _ = run(tmp_path, "part", 9, ahead, ckpt_path=last)
    assert first.lines + second.lines == whole.lines
    assert again.resampler.moves == resampling.resampler.moves


def test_a_later_stage_begins_with_the_pass_rates_of_an_earlier_one(tmp_path):
    file = tmp_path / "ledger.npz"
    run(tmp_path, "one", 6, file=file)
    ledger = PassRateLedger(outside=0.02)
    _, resampling, data = run(tmp_path, "two", 1, ledger=ledger, file=file, floor=1.0)  # as many of each source
    assert resampling.resampler.ledger.stage == 1
    solved = {key for key, rate in resampling.resampler.known_rates().items() if rate == 1.0}
    assert {source for source, _ in solved} == {0}
    assert len(ledger.rates) > 4, "more than the one collection asked"
    assert data._train.drawer.refused > 0


def test_seen_counts_the_times_asked_also_over_a_resume(tmp_path):
    """Not the passes: a ledger of pass rates passes over prompts. A collection that taught nothing was asked too."""
    data_of(tmp_path)  # writes the tokenizer

    def run(folder, steps, ckpt_path=None):
        ledger, reward = PassRateLedger(low=0.45, high=0.55, outside=0.3), OnceWithout(ckpt_path is None)
        sources = [SourceSpec(source=Questions(6), name="q")]
        data = PromptDataModule(str(tmp_path / "tokenizer"), sources, prompts_per_step=2, ledger=ledger)
        resampling = KeyDataResampling(PassRateBand(), 2)
        stage = stage_of(rewards=RewardRouter({"once": reward}), plan={"minibatches": 2})
        fit(stage, data, tmp_path / folder, steps, resampling, ckpt_path=ckpt_path)
        return reward.asked, resampling.resampler.ledger.sources["q"].columns, data

    asked, columns, data = run("whole", 18)
    assert data._train.drawer.refused > 0
    assert columns["seen"].tolist() == [asked[n] for n in range(6)]
    assert sum(asked.values()) == 20, "nine collections that were learnt from, and the first"
    run("part", 9)
    _, again, _ = run("part", 18, tmp_path / "part" / "checkpoints" / "last.ckpt")
    for name, column in columns.items():
        assert again[name].tolist() == pytest.approx(column.tolist(), abs=0, nan_ok=True), name
