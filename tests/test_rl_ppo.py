"""PPO: the value head, its loss, its warm-up, and advantages that are those of the definition."""

import pytest
import torch
from rl_runs import data_of, fit, ppo_stage_of
from test_rl_stage import Peek
from tiny import tiny_vlm

from bluelm_lightning.components import ValueHead
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.plan import ValuePlan
from bluelm_lightning.rl.rewards import Reward, RewardRouter
from bluelm_lightning.rl.value_loss import value_loss
from bluelm_lightning.stages import PPOStage
from bluelm_lightning.types import Score


def test_value_loss_by_hand():
    values = torch.tensor([0.5, 2.0, 9.0], requires_grad=True)
    old, returns = torch.tensor([0.4, 1.0, 0.0]), torch.tensor([1.0, 3.0, 0.0])
    mask = torch.tensor([True, True, False])
    # errors: 0.25; 1.0 but clipped to 1.2 it is 3.24. Half of the sum over two tokens of four in the step.
    loss, stats = value_loss(values, old, returns, mask, 4, clip=0.2)
    assert float(loss) == pytest.approx(0.5 * (0.25 + 3.24) / 4)
    loss.backward()
    assert values.grad.tolist() == pytest.approx([-0.125, 0.0, 0.0])  # clipped and masked values are not pulled
    assert float(stats["clipped"]) == 0.5
    assert float(value_loss(values, old, returns, mask, 4, clip=0.0)[0]) == pytest.approx(0.5 * 1.25 / 4)


def test_a_head_starts_at_zero_and_must_fit():
    head = ValueHead(32)
    assert torch.equal(head(torch.randn(2, 3, 32)), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="set decoder_dim: 32"):
        PPOStage(tiny_vlm(), ValueHead(16), RewardRouter({"x": Reward()}))
    for wrong in ({"gamma": 0.0}, {"lam": 2.0}, {"coef": -1.0}):
        with pytest.raises(ConfigError, match=r"model\.values"):
            ValuePlan(**wrong)


class Seven(Reward):
    def score(self, rollouts):
        return [Score(7.0 * r.group) for r in rollouts]


def test_advantages_are_what_was_earned_less_what_was_expected(tmp_path):
    rewards = RewardRouter({"seven": Seven()})
    stage, peek = ppo_stage_of(rewards=rewards, values={"whiten": False, "lam": 1.0}), Peek()
    fit(stage, data_of(tmp_path), tmp_path, 1, peek)
    batch = peek.batches[0]  # values are 0 at first, so every token is worth what its rollout earned
    assert torch.equal(batch.values, torch.zeros_like(batch.values))
    assert torch.equal(batch.advantages, batch.returns)
    assert set(batch.returns.tolist()) == {0.0, 7.0, 14.0, 21.0}
    for number in range(batch.num_sequences):
        assert len(set(batch.returns[batch.rollout == number].tolist())) == 1
    assert peek.logged[0]["policy/ratio"] == 1.0


def test_whitened_advantages_have_mean_0_and_deviation_1_over_the_step(tmp_path):
    stage, peek = ppo_stage_of(), Peek()
    fit(stage, data_of(tmp_path), tmp_path, 1, peek, accumulate_grad_batches=2)
    chosen = torch.cat([batch.advantages[batch.learned] for batch in peek.batches])
    assert float(chosen.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(chosen.std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)


def test_in_the_warm_up_the_head_learns_alone(tmp_path):
    stage = ppo_stage_of(values={"warmup_steps": 3})  # with weight decay, which must wait too
    policy = {name: p.detach().clone() for name, p in stage.vlm.named_parameters()}
    head = stage.value.out.weight.detach().clone()
    fit(stage, data_of(tmp_path), tmp_path, 3)
    assert all(torch.equal(p, policy[name]) for name, p in stage.vlm.named_parameters())
    assert not torch.equal(stage.value.out.weight, head)
    stage = ppo_stage_of(values={"warmup_steps": 3})
    fit(stage, data_of(tmp_path), tmp_path / "on", 5)
    assert any(not torch.equal(p, policy[name]) for name, p in stage.vlm.named_parameters())


def test_the_head_learns_what_to_expect(tmp_path):
    stage, peek = ppo_stage_of(values={"warmup_steps": 100, "clip": 0.0}), Peek()
    fit(stage, data_of(tmp_path), tmp_path, 30, peek)
    first, last = peek.logged[0]["value/loss"], sum(logged["value/loss"] for logged in peek.logged[-5:]) / 5
    assert last < 0.3 * first


def test_the_value_loss_does_not_touch_the_policy(tmp_path):
    gradients = []
    for coef in (0.0, 50.0):
        stage, peek = ppo_stage_of(values={"coef": coef}, clip_norm=0.0), Peek()
        fit(stage, data_of(tmp_path), tmp_path / str(coef), 1, peek)
        gradients.append(peek.gradients)
    assert all(torch.equal(g, gradients[1][name]) for name, g in gradients[0].items() if name.startswith("vlm."))
    assert gradients[1]["value.out.bias"].abs() > 0
