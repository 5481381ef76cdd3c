"""How prompts are asked: the ledger of pass rates, refills, stated budgets, and rollouts that are written ahead."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from rl_runs import Diary, Questions, data_of, fit, stage_of
from test_rl_stage import Peek
from tiny import question, tiny_encoder, tiny_tokenizer

from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.ledger import PassRateLedger
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.prompt_drawer import PromptDrawer, PromptPlan
from bluelm_lightning.datamodules import PromptDataModule, SourceSpec
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.rl.policy_loss import PolicyLoss
from bluelm_lightning.rl.rewards import Reward, RewardRouter
from bluelm_lightning.stages import RLStage
from bluelm_lightning.types import Ref, Score


class Parity(Reward):
    """Prompts of even number are always solved; of the others every second rollout."""

    def score(self, rollouts):
        odd = [int(r.prompt.sample.id[1:]) % 2 for r in rollouts]
        return [Score(1.0 if not o else float(i % 2)) for i, o in enumerate(odd)]


def test_the_ledger_keeps_to_its_band():
    ledger = PassRateLedger(0.2, 0.8, outside=0.25, refresh=100, memory=0.5)
    easy, half, new = Ref(0, 0, 1), Ref(0, 0, 2), Ref(0, 0, 3)
    ledger.record(easy, 10, 1.0)
    ledger.record(half, 10, 0.5)
    rng = Random(0)
    assert all(ledger.accepts(ref, 50, rng) for ref in (half, new) for _ in range(50))
    taken = sum(ledger.accepts(easy, 50, rng) for _ in range(2000)) / 2000
    assert 0.2 < taken < 0.3
    assert all(ledger.accepts(easy, 110, rng) for _ in range(20))  # stale
    assert ledger.accepts(easy._replace(epoch=7), 110, rng)  # the pass over the source does not matter
    ledger.record(easy, 60, 0.0)
    assert ledger.rates[0, 1] == (0.5, 60)
    again = PassRateLedger(0.2, 0.8)
    again.load_state_dict(ledger.state_dict())
    assert again.rates == ledger.rates
    with pytest.raises(ConfigError, match=r"data\.ledger"):
        PassRateLedger(0.9, 0.1)


@pytest.mark.parametrize("band", [(0.6, 0.95), (0.0, 0.4)])
def test_what_was_never_asked_is_accepted_whatever_the_band(band):
    ledger, rng, twin = PassRateLedger(*band, outside=0.1), Random(0), Random(0)
    assert all(ledger.accepts(Ref(0, 0, index), index, rng) for index in range(50))
    assert rng.random() == [twin.random() for _ in range(51)][-1], "one random number, whatever comes out"


def teaching(tmp_path, steps, **options):
    """Shares of groups without variance, and the number of prompts learnt from, of the later half of the steps."""
    stage, peek = stage_of(rewards=RewardRouter({"parity": Parity()})), Peek()
    data = data_of(tmp_path, Questions(12), **options)
    fit(stage, data, tmp_path, steps, peek)
    wasted = [logged["rollout/zero_variance"] for logged in peek.logged]
    return wasted[steps // 2 :], [b.num_sequences // 4 for b in peek.batches][steps // 2 :], data


def test_the_ledger_raises_the_share_of_groups_that_teach(tmp_path):
    plain, _, _ = teaching(tmp_path / "plain", 12)
    ledger, _, data = teaching(tmp_path / "ledger", 12, ledger=PassRateLedger(outside=0.02))
    assert sum(ledger) / len(ledger) < 0.3 * sum(plain) / len(plain)
    assert data._train.drawer.refused > 5


def test_refills_make_up_for_groups_that_teach_nothing(tmp_path):
    without, few, _ = teaching(tmp_path / "without", 6)
    _, full, _ = teaching(tmp_path / "with", 6, refills=8)
    assert sum(without) > 0
    assert min(few) < 4
    assert full == [4] * 3


def test_a_collection_calls_the_learner_equally_often_whatever_it_taught(tmp_path, monkeypatch):
    """Processes wait for each other there, and one of them may need fewer refills."""
    calls, write = [], RLStage.write
    monkeypatch.setattr(
        RLStage, "write", lambda self, prompts, **o: calls.append(len(prompts)) or write(self, prompts, **o)
    )
    teaching(tmp_path, 3, refills=4)
    assert len(calls) == 3 * 5
    assert calls[::5] == [4] * 3
    assert 0 in calls


def test_stated_budgets_are_kept_by_the_traces(tmp_path):
    encoder, tokenizer = tiny_encoder(), tiny_tokenizer()
    sample = question("how many?", "12")
    sample.messages[-1]["thinking"] = "the sum is 12, yes"
    plain = encoder(sample)
    said = encoder(sample, stated=1.0)
    trace = len(tokenizer("the sum is 12, yes", add_special_tokens=False)["input_ids"])
    assert f"[|BlueThink|]<={trace}\n" in tokenizer.decode(said.ids)
    assert torch.equal(plain.labels[plain.labels >= 0], said.labels[said.labels >= 0])  # no loss on what is stated
    cut = encoder(sample, cut=0.5, stated=1.4)
    assert f"<={round(trace / 2)}\n" in tokenizer.decode(cut.ids)
    assert "<=7\n" in tokenizer.decode(encoder.prompt(sample, True, 7).ids)
    assert "<=" not in tokenizer.decode(encoder.prompt(sample, False, 7).ids)
    data = data_of(tmp_path, budgets=BudgetRange(3, 3, 0.0), stated_share=1.0)
    peek = Peek()
    fit(stage_of(), data, tmp_path, 4, peek)
    text = "".join(tokenizer.decode(batch.ids[0]) for batch in peek.batches)
    assert text.count("[|BlueThink|]<=3\n") == text.count("[|BlueThink|]") > 0


def test_rollouts_ahead_are_one_collection_old_and_corrected(tmp_path):
    stage, peek = stage_of(algorithm=PolicyLoss(correction="token"), plan={"ahead": True}), Peek()
    fit(stage, data_of(tmp_path), tmp_path, 5, peek)
    assert [logged["rollout/staleness"] for logged in peek.logged] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert peek.logged[0]["policy/gap_max"] < 1e-4
    assert peek.logged[2]["policy/gap_max"] > 1e-3  # the weights that wrote are not those that learn
    assert all(logged["policy/ratio"] == pytest.approx(1.0, abs=1e-5) for logged in peek.logged)
    assert not any(p.requires_grad for p in stage.writer.parameters())


def test_rewards_that_fail_are_the_cause_when_nothing_is_learnt(tmp_path):
    """Not that all are equal, which sends the reader to the prompts."""

    class Same(Reward):
        def score(self, rollouts):
            return [Score(1.0)] * len(rollouts)

    class Broken(Reward):
        def score(self, rollouts):
            raise RuntimeError("no connection")

    fail = RewardRouter({"same": Same(), "judge": Broken()})
    said = "20 collections .* 320 of 640 rewards are missing, .*reward judge: RuntimeError: no connection"
    with pytest.raises(DataError, match=said):
        fit(stage_of(rewards=fail), data_of(tmp_path), tmp_path, 1)


def test_plans_are_checked():
    for wrong in ({"prompts_per_step": 0}, {"refills": -1}, {"stated_share": 2.0}):
        with pytest.raises(ConfigError, match=r"data\."):
            PromptPlan(**wrong)


def test_limits_do_not_go_with_a_ledger_that_passes_over_prompts(tmp_path):
    data_of(tmp_path)  # writes the tokenizer
    sources = [SourceSpec(source=Questions(6), name="q", max_repeats=2)]
    with pytest.raises(ConfigError, match=r"data\.ledger: .*max_repeats of 'q'"):
        PromptDataModule(str(tmp_path / "tokenizer"), sources, ledger=PassRateLedger())
    PromptDataModule(str(tmp_path / "tokenizer"), sources)


def test_a_resume_asks_the_same_prompts_and_refuses_other_ones(tmp_path):
    def run(folder, steps, ledger=None, ckpt_path=None, **options):
        ledger = ledger or PassRateLedger(outside=0.02)
        diary, data = Diary(), data_of(tmp_path, ledger=ledger, **{"refills": 2, **options})
        stage = stage_of(rewards=RewardRouter({"parity": Parity()}))
        fit(stage, data, tmp_path / folder, steps, diary, ckpt_path=ckpt_path)
        return diary.lines

    whole, last = run("whole", 6), tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert run("part", 3) + run("part", 6, ckpt_path=last) == whole
    with pytest.raises(ConfigError, match=r"data\.ledger: this run had"):
        run("part", 6, PassRateLedger(low=0.3), ckpt_path=last)
    with pytest.raises(ConfigError, match=r"data\.refills: this run had 2 when it was saved and now has 1"):
        run("part", 6, ckpt_path=last, refills=1)


def test_every_process_asks_every_source():
    """And no prompt of another, also while shares move and one asks for more: it had fewer that taught something."""
    sources = [[question(f"{name} {n}", id=f"{name}{n}") for n in range(400)] for name in "ab"]
    moving = SimpleNamespace(weights_at=lambda collection: [1.0, 0.1 + 0.1 * collection])
    drawn = []
    for rank in range(2):
        drawer = PromptDrawer(
            sources, tiny_encoder(), Mixture([400, 400], [1.0, 0.1]), PromptPlan(), rank=rank, world_size=2,
            course=moving,
        )  # fmt: skip
        for _ in range(20):
            drawer.begin()
            drawn += [(asked.ref, asked.draw, rank) for asked in drawer.draw(4 + 3 * rank, BudgetRange())]
    assert len(drawn) == 20 * 11
    assert len({ref for ref, _, _ in drawn}) == len({number for _, number, _ in drawn}) == len(drawn)
    for rank in range(2):
        assert 20 < sum(ref.source for ref, _, of in drawn if of == rank) < 80
