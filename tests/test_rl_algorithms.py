"""Advantages, divergences and policy losses against arithmetic done by hand."""

import math

import pytest
import torch

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.advantages import gae, group_advantages, overlong_penalty, rloo_advantages
from bluelm_lightning.rl.kl import kl_estimate
from bluelm_lightning.rl.policy_loss import DAPO, GRPO, GSPO, DrGRPO, PolicyLoss

NAN = float("nan")
# Two rollouts: tokens 0, 1 and 2 of the first, 3 and 4 of the second.
ROLLOUT = torch.tensor([0, 0, 0, 1, 1])
ADVANTAGES = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
OLD = torch.tensor([-1.0, -2.0, -0.5, -1.0, -3.0])
ALL = torch.ones(5, dtype=torch.bool)


def loss_of(algorithm, logprobs, mask=ALL, **more):
    loss, stats = algorithm(logprobs, OLD, ADVANTAGES, ROLLOUT, mask, 2, int(mask.sum()), **more)
    return loss, stats


def test_group_advantages():
    rewards, groups = torch.tensor([1.0, 0.0, 2.0, 5.0, 5.0, 3.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    # group 0: mean 1, deviation sqrt((0 + 1 + 1) / 2) = 1; group 1 does not vary; group 2 is alone
    got = group_advantages(rewards, groups)
    assert got.tolist() == pytest.approx([0, -1 / 1.0001, 1 / 1.0001, 0, 0, 0])
    assert group_advantages(rewards, groups, "none").tolist() == [0, -1, 1, 0, 0, 0]
    missing = torch.tensor([1.0, NAN, 3.0])
    assert group_advantages(missing, torch.zeros(3, dtype=torch.long), "none").tolist() == [-1, 0, 1]


def test_a_group_without_variance_is_exactly_zero():
    third = torch.full((7,), 0.1) * 3  # whose mean is not exactly itself in float32
    assert not group_advantages(third, torch.zeros(7, dtype=torch.long)).any()


def test_rloo_leaves_each_rollout_out_of_its_baseline():
    got = rloo_advantages(torch.tensor([3.0, 1.0, 2.0, NAN]), torch.zeros(4, dtype=torch.long))
    assert got.tolist() == pytest.approx([3 - 1.5, 1 - 2.5, 2 - 2, 0])


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    values = torch.tensor([[0.5, 0.4, 0.6], [0.2, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    # row 0: d2 = 1 - 0.6 = 0.4; d1 = 0.9 * 0.6 - 0.4 = 0.14; d0 = 0.9 * 0.4 - 0.5 = -0.14
    # A2 = 0.4; A1 = 0.14 + 0.45 * 0.4 = 0.32; A0 = -0.14 + 0.45 * 0.32 = 0.004; row 1: A0 = 1 - 0.2
    assert advantages.flatten().tolist() == pytest.approx([0.004, 0.32, 0.4, 0.8, 0, 0], abs=1e-6)
    assert returns.flatten().tolist() == pytest.approx([0.504, 0.72, 1.0, 1.0, 0, 0])


def test_overlong_penalty():
    assert overlong_penalty(torch.tensor([50, 80, 90, 100, 120]), 100, 20).tolist() == [0, 0, -0.5, -1, -1]


def test_kl_estimators():
    ours, theirs = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_estimate(ours, theirs, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(ours, theirs, "k2").tolist() == [0.125, 0.5]
    assert kl_estimate(ours, theirs, "k3").tolist() == pytest.approx([math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1])
    with pytest.raises(ConfigError, match="k4"):
        kl_estimate(ours, theirs, "k4")


def test_on_policy_the_ratio_is_exactly_one():
    for algorithm in (GRPO(), DrGRPO(10), DAPO(), GSPO()):
        _, stats = loss_of(algorithm, OLD.clone())
        assert float(stats["ratio"]) == 1.0
        assert float(stats["clipped_low"]) == float(stats["clipped_high"]) == 0.0


# ratios: 1.5 (clipped from above at 1.2 or 1.28), 1, 0.5 (advantage 1: not clipped), 0.5 (advantage -1: clipped at
# 0.8), 1.5 (advantage -1: not clipped); so the losses are -1.2 or -1.28, -1, -0.5, 0.8, 1.5
MOVED = OLD + torch.tensor([math.log(1.5), 0.0, math.log(0.5), math.log(0.5), math.log(1.5)])


@pytest.mark.parametrize(
    ("algorithm", "wanted"),
    [
        (GRPO(), ((-1.2 - 1 - 0.5) / 3 + (0.8 + 1.5) / 2) / 2),
        (DrGRPO(10), (-1.2 - 1 - 0.5 + 0.8 + 1.5) / 10 / 2),
        (DAPO(), (-1.28 - 1 - 0.5 + 0.8 + 1.5) / 5),
        # geometric means: (1.5 * 1 * 0.5) ** (1 / 3) = 0.909 and (0.5 * 1.5) ** (1 / 2) = 0.866, neither is clipped
        (GSPO(0.2, 0.2), (-(0.75 ** (1 / 3)) + 0.75**0.5) / 2),
    ],
)
def test_clipped_losses_by_hand(algorithm, wanted):
    loss, _ = loss_of(algorithm, MOVED)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


def test_clip_shares():
    _, stats = loss_of(GRPO(), MOVED)
    assert float(stats["clipped_high"]) == pytest.approx(1 / 5)
    assert float(stats["clipped_low"]) == pytest.approx(1 / 5)


@pytest.mark.parametrize("algorithm", [GRPO(), DrGRPO(10), DAPO(), GSPO(0.2, 0.2), PolicyLoss(kl_coef=0.1)])
def test_forced_tokens_have_no_gradient_and_no_say(algorithm):
    mask = torch.tensor([True, False, True, True, True])
    more = {"reference": OLD - 0.3, "behaviour": OLD.clone()}
    grads, losses = [], []
    for forced in (0.0, 50.0):
        logprobs = MOVED.clone()
        logprobs[1] += forced
        logprobs.requires_grad_(True)
        loss, _ = loss_of(algorithm, logprobs, mask, **more)
        loss.backward()
        grads.append(logprobs.grad)
        losses.append(loss.detach())
    assert torch.equal(grads[0], grads[1])
    assert losses[0] == losses[1]
    assert float(grads[0][1]) == 0.0
    assert grads[0].any()


@pytest.mark.parametrize("algorithm", [GRPO(), DrGRPO(10), DAPO(), GSPO(0.2, 0.2)])
def test_micro_batches_sum_to_the_whole(algorithm):
    whole, _ = loss_of(algorithm, MOVED)
    first, second = ROLLOUT == 0, ROLLOUT == 1
    parts = [
        algorithm(MOVED[p], OLD[p], ADVANTAGES[p], ROLLOUT[p] - ROLLOUT[p][0], ALL[p], 2, 5)[0] for p in (first, second)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_correction_weights_by_the_gap_and_is_capped():
    behaviour = OLD - torch.tensor([math.log(1.5), 0.0, math.log(3.0), 0.0, 0.0])  # weights 1.5, 1, 2 (of 3), 1, 1
    loss, stats = loss_of(PolicyLoss(aggregate="token", correction="token"), OLD.clone(), behaviour=behaviour)
    assert float(loss) == pytest.approx((-1.5 - 1 - 2 + 1 + 1) / 5, rel=1e-5)
    assert float(stats["gap_max"]) == pytest.approx(math.log(3.0), rel=1e-5)
    capped = PolicyLoss(aggregate="token", correction="sequence", correction_cap=4.0)
    loss, _ = loss_of(capped, OLD.clone(), behaviour=behaviour)  # 1.5 * 1 * 3 = 4.5, capped at 4, for the first rollout
    assert float(loss) == pytest.approx((-3 * 4 + 2) / 5, rel=1e-5)


def test_a_batch_of_forced_tokens_alone():
    loss, _ = loss_of(GRPO(), MOVED, torch.zeros(5, dtype=torch.bool))
    assert float(loss) == 0.0


@pytest.mark.parametrize(
    "wrong", [{"ratio": "word"}, {"aggregate": "constant"}, {"clip_low": -1.0}, {"correction": "maybe"}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"model\.algorithm"):
        PolicyLoss(**wrong)
