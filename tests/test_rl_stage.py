"""The RL stage: gradients by autograd, exact ratios, failures that are told, and a task that it learns."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rl_runs import Diary, Questions, WantsLowIds, data_of, fit, stage_of
from tiny_data import Talks

from bluelm_lightning.callbacks import ThinkingBudgetCurriculum
from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.data.packing import pack
from bluelm_lightning.datamodules import MultimodalDataModule, SourceSpec
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.generation.decode import forbidden
from bluelm_lightning.rl.experience import deal, whole
from bluelm_lightning.rl.policy_loss import PolicyLoss
from bluelm_lightning.rl.rewards import Reward, RewardRouter
from bluelm_lightning.stages import RLStage, RolloutPlan
from bluelm_lightning.types import Score

HERE = Path(__file__).parent


class Peek(Diary):
    """Keeps each batch, what was logged, and the gradients of the first step."""

    def __init__(self):
        super().__init__()
        self.batches, self.logged, self.gradients = [], [], None

    def on_before_optimizer_step(self, trainer, stage, optimizer):
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, stage, outputs, batch, batch_idx)
        self.batches.append(batch)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_the_gradient_is_that_of_the_objective_written_out(tmp_path, monkeypatch):
    seen = []
    collect = RLStage._experience
    monkeypatch.setattr(RLStage, "_experience", lambda self, r, a, m: seen.append((r, a)) or collect(self, r, a, m))
    stage, peek = stage_of(clip_norm=0.0), Peek()
    fit(stage, data_of(tmp_path), tmp_path, 1, peek)
    rollouts, advantages = seen[0]
    reference, tokenizer = stage_of().vlm, stage.trainer.datamodule.tokenizer  # the same seed: the weights before
    never = forbidden(reference.vocab_size, tokenizer)
    total = torch.tensor(0.0)
    for rollout, advantage in zip(rollouts, advantages):
        doc = whole(rollout)
        hidden = reference(pack([[doc]], len(doc), 0))[0, len(rollout.prompt.encoded) - 1 :]
        terms, inside = [], False
        written = zip(hidden, rollout.ids.tolist(), rollout.forced.tolist())
        for place, (state, token, forced) in enumerate(written):
            ruled_out = never.clone()
            ruled_out[tokenizer.eos_token_id] |= inside
            ruled_out[tokenizer.convert_tokens_to_ids("<think>")] |= rollout.prompt.budget == 0 or place + 2 > 12 - 3
            if not forced:
                logits = (state @ reference.decoder.output_weight.T).masked_fill(ruled_out, -torch.inf)
                logprob = logits.log_softmax(-1)[token]
                terms.append(-(logprob - logprob.detach()).exp() * advantage)
            inside = token == tokenizer.convert_tokens_to_ids("<think>") or (
                inside and token != tokenizer.convert_tokens_to_ids("</think>")
            )
        total = total + sum(terms) / len(terms) / len(rollouts)
    total.backward()
    wanted = {f"vlm.{name}": p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert peek.gradients.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert max(float((peek.gradients[n] - wanted[n]).abs().max()) for n in wanted) < 2e-6 * max(scale, 1)
    assert peek.logged[0]["policy/ratio"] == 1.0


def test_the_reference_is_the_policy_as_it_was_handed_over(tmp_path):
    stage, peek = stage_of(algorithm=PolicyLoss(kl_coef=0.1)), Peek()
    with torch.no_grad():
        stage.vlm.decoder.output_weight.mul_(1.5)  # as --init_from does: after the stage was built
    handed = {name: value.clone() for name, value in stage.vlm.state_dict().items()}
    fit(stage, data_of(tmp_path), tmp_path, 6, peek)
    assert peek.logged[0]["policy/kl"] == 0.0
    assert peek.logged[-1]["policy/kl"] > 0.0
    assert all(torch.equal(value, handed[name]) for name, value in stage.reference.state_dict().items())
    again = stage_of(algorithm=PolicyLoss(kl_coef=0.1))
    fit(again, data_of(tmp_path), tmp_path, 7, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, handed[name]) for name, value in again.reference.state_dict().items())
    assert stage_of().reference is None


def test_several_updates_on_the_same_rollouts_move_the_ratio(tmp_path):
    stage, peek = stage_of(plan={"minibatches": 2, "epochs": 2}), Peek()
    fit(stage, data_of(tmp_path), tmp_path, 4, peek)
    ratios = [logged["policy/ratio"] for logged in peek.logged]
    assert ratios[0] == 1.0  # the first minibatch: the weights are still those that wrote it
    assert ratios[2] != 1.0
    assert torch.equal(peek.batches[0].labels, peek.batches[2].labels)
    assert not torch.equal(peek.batches[0].labels, peek.batches[1].labels)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    gradients = []
    for accumulate in (1, 2):
        stage, peek = stage_of(clip_norm=0.0), Peek()
        fit(stage, data_of(tmp_path), tmp_path / str(accumulate), 1, peek, accumulate_grad_batches=accumulate)
        gradients.append(peek.gradients)
    scale = max(float(g.abs().max()) for g in gradients[0].values())
    worst = max(float((gradients[0][n] - gradients[1][n]).abs().max()) for n in gradients[0])
    assert worst < 1e-5 * scale  # worst seen 1e-6


KINDS = ["plain", "buffered", "ahead"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder, and exit codes by kind."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(HERE / "rl_runs.py"), str(folder), *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "codes.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_goes_on_exactly(killed, kind):
    """Also with experience waiting (minibatches 2 x epochs 2), and with rollouts under way and dropout."""
    folder, codes = killed
    assert codes[kind] == [0, -signal.SIGKILL, 0]
    wanted, until, since = (
        (folder / kind / f"{part}.txt").read_text().splitlines() for part in ("whole", "killed", "resumed")
    )
    assert len(wanted) == 11
    assert until == wanted[:8]
    assert since == wanted[6:]  # saved after the sixth


def test_a_broken_picture_is_skipped_and_counted(tmp_path, caplog):
    stage, data = stage_of(), data_of(tmp_path, Questions(12, broken=3))
    fit(stage, data, tmp_path, 4)
    assert data._train.skipped == 1
    assert "skipped prompt: q3: image 0" in caplog.text


def test_a_reward_that_raises_stops_the_run_with_one_line_if_it_is_told_to(tmp_path):
    class Broken(Reward):
        def score(self, rollouts):
            raise RuntimeError("no connection")

    stop = RewardRouter({"low": WantsLowIds(), "judge": Broken()}, on_error="stop")
    with pytest.raises(DataError, match="reward judge: failed: RuntimeError: no connection"):
        fit(stage_of(rewards=stop), data_of(tmp_path), tmp_path, 1)
    peek = Peek()
    go_on = RewardRouter({"low": WantsLowIds(), "judge": Broken()})
    fit(stage_of(rewards=go_on), data_of(tmp_path), tmp_path, 1, peek)
    assert peek.logged[0]["reward/judge/missing"] == 1.0


def test_rewards_that_never_differ_stop_the_run_instead_of_looping(tmp_path):
    class Same(Reward):
        def score(self, rollouts):
            return [Score(1.0)] * len(rollouts)

    with pytest.raises(DataError, match="20 collections in a row"):
        fit(stage_of(rewards=RewardRouter({"same": Same()})), data_of(tmp_path), tmp_path, 1)


def test_the_curriculum_moves_the_budgets(tmp_path):
    curriculum = ThinkingBudgetCurriculum((4, 8), (0, 2), total_steps=4, free_share=0.0)
    assert [curriculum.value_at(step) for step in (0, 1, 2, 4, 9)] == [(4, 8), (3, 6), (2, 5), (0, 2), (0, 2)]
    peek, data = Peek(), data_of(tmp_path)
    fit(stage_of(), data, tmp_path, 3, peek, curriculum)
    assert (data.budgets.low, data.budgets.high, data.budgets.free_share) == (1, 4, 0.0)
    assert peek.logged[-1]["budget/high"] in (4.0, 5.0)
    with pytest.raises(ConfigError, match="is no range"):
        ThinkingBudgetCurriculum((8, 4), (0, 2), 4)


def test_heaps_are_equal_in_number_and_near_in_tokens():
    rollouts = stage_rollouts([9, 1, 8, 2, 7, 3, 6, 4])
    heaps = deal(rollouts, 2)
    assert sorted(i for heap in heaps for i in heap) == list(range(8))
    tokens = [sum(len(rollouts[i].ids) for i in heap) for heap in heaps]
    assert [len(heap) for heap in heaps] == [4, 4]
    assert abs(tokens[0] - tokens[1]) <= 2


def stage_rollouts(lengths):
    from rollouts import rollout

    return [rollout("1" * n) for n in lengths]


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="temperature above 0"):
        RLStage(stage_of().vlm, RewardRouter({"low": WantsLowIds()}), sampling=Sampling(12, 0.0))
    with pytest.raises(ConfigError, match="nothing to be compared with"):
        stage_of(plan={"group_size": 1})
    for wrong in ({"group_size": 0}, {"epochs": 0}, {"advantage": "best"}):
        with pytest.raises(ConfigError, match=r"model\.plan"):
            RolloutPlan(**wrong)


def test_batches_that_no_rollouts_were_made_for_are_refused(tmp_path):
    class Quiet(MultimodalDataModule):
        """Does not say what it gives."""

    data_of(tmp_path)
    data = Quiet(str(tmp_path / "tokenizer"), [SourceSpec(source=Talks(12))], num_workers=0)
    with pytest.raises(ConfigError, match=r"^data: RLStage learns from prompts .* give it PromptDataModule$"):
        fit(stage_of(), data, tmp_path, 1)


def test_weights_of_half_precision_are_refused(tmp_path):
    """Lightning would round the batch with them: log-probabilities, and so the ratios of the first update."""
    with pytest.raises(ConfigError, match=r"trainer\.precision: bf16-true rounds .* train in bf16-mixed"):
        fit(stage_of(), data_of(tmp_path), tmp_path, 1, precision="bf16-true")


def test_budgets_without_a_rule_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.budget"):
        fit(stage_of(budget=None), data_of(tmp_path, budgets=BudgetRange(1, 6, 0.0)), tmp_path, 3)
