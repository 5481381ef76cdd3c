"""What reinforcement learning shows: alarms, tables of rollouts, budgets that move, forensics."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from processes import in_ranks
from rl_runs import WantsLowIds, data_of, fit, stage_of
from rollouts import rollout
from test_rl_stage import Peek

from bluelm_lightning.callbacks import AdaptiveBudgetCurriculum, Alarm, RLAlarms, RolloutTable, ThinkingBudgetCurriculum
from bluelm_lightning.callbacks.rollout_table import histogram
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.forensics import rollout_metrics
from bluelm_lightning.rl.rewards import RewardRouter
from bluelm_lightning.types import Score, Scored


def test_forensics_of_two_verdicts_and_two_modes():
    def scored(rule, judge, thinking, text="<think>1</think>8</s>"):
        return Scored(rollout(text, thinking=thinking), {"rule": Score(rule), "judge": Score(judge)}, 1.0)

    batch = [scored(1.0, 0.9, True), scored(0.0, 0.8, True), scored(1.0, None, False), scored(0.0, 0.1, False)]
    batch.append(scored(1.0, 1.0, True, "123412341234</s>"))
    found = rollout_metrics(batch, verdicts=["rule", "judge"], correct=["rule"])
    assert found["reward/disagreement/judge_rule"] == pytest.approx(1 / 4)  # the missing one does not count
    assert found["mode/thinking_correct"] == pytest.approx(2 / 3)
    assert found["mode/direct_correct"] == 0.5
    assert found["rollout/repetition"] > 0
    assert found["reward/judge/missing"] == pytest.approx(0.2)
    none = rollout_metrics([Scored(rollout("8</s>"), {"rule": Score(1.0)}, 1.0)], verdicts=["rule", "judge"])
    assert "reward/disagreement/judge_rule" not in none


def test_histogram_counts_everything():
    assert histogram([0.0, 0.05, 0.5, 1.0], 2) == {"counts": [2.0, 2.0], "edges": [0.0, 0.5, 1.0]}
    assert sum(histogram([3.0, 3.0])["counts"]) == 2
    assert sum(histogram([])["counts"]) == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_alarms_say_what_is_wrong_once(tmp_path, accumulate):
    alarms = RLAlarms([Alarm("reward/low/mean", low=2.0, sentence="rewards are low")], window=2, quiet_steps=4)
    with pytest.warns(UserWarning, match="rewards are low"):
        fit(stage_of(), data_of(tmp_path), tmp_path, 8, alarms, accumulate_grad_batches=accumulate)
    told = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if line["metric"] == "reward/low/mean"] == [2, 6]
    assert {len(values) for values in alarms.state_dict()["recent"].values()} == {2}
    again = RLAlarms(window=2)
    again.load_state_dict(alarms.state_dict())
    assert again.state_dict() == alarms.state_dict()


def test_a_resume_tells_no_alarm_twice(tmp_path):
    def run(steps, ckpt_path=None):
        alarms = RLAlarms([Alarm("reward/low/mean", low=2.0, sentence="rewards are low")], window=1, quiet_steps=1)
        with pytest.warns(UserWarning, match="rewards are low"):
            fit(stage_of(), data_of(tmp_path), tmp_path, steps, alarms, ckpt_path=ckpt_path)
        return (tmp_path / "alarms.jsonl").read_text()

    whole = run(5)  # the checkpoint is of step 3
    assert [json.loads(line)["step"] for line in whole.splitlines() if "reward/low" in line] == [1, 2, 3, 4, 5]
    assert run(5, tmp_path / "checkpoints" / "last.ckpt") == whole


def test_a_mean_of_alarms_goes_over_the_micro_batches_of_its_steps():
    alarms, said = RLAlarms([], window=2), []
    module = SimpleNamespace(log=lambda *a, **k: said.append(a))
    for step, value in ((0, 1.0), (1, 2.0), (1, 3.0), (2, 6.0)):  # two micro-batches a step
        metrics = {"policy/kl": torch.tensor(value)}
        alarms.on_train_batch_end(SimpleNamespace(global_step=step, callback_metrics=metrics), module)
    assert alarms.state_dict()["recent"] == {"policy/kl": [1.5, 4.5]}
    assert said == [("alarm/count", 0.0)] * 2


def test_alarms_on_missing_rewards_and_on_a_mode_that_erodes():
    alarms = RLAlarms(mode_drop=0.1)
    assert alarms.check({"mode/direct_correct": 0.8, "reward/judge/missing": 0.1, "mode/think_leak": 0.0}) == {}
    found = alarms.check({"mode/direct_correct": 0.65, "reward/judge/missing": 0.5, "mode/think_leak": 0.5})
    assert set(found) == {"mode/direct_correct", "reward/judge/missing", "mode/think_leak"}
    assert "direct mode" in found["mode/direct_correct"]
    assert alarms.check({"policy/clipped_low": 0.5, "reward/disagreement/a_b": 0.4}).keys() == {
        "policy/clipped_low",
        "reward/disagreement/a_b",
    }
    with pytest.raises(ConfigError):
        RLAlarms(window=0)


def test_the_table_holds_every_rollout_and_shows_pictures(tmp_path):
    stage = stage_of()
    fit(stage, data_of(tmp_path), tmp_path, 4, RolloutTable(every_n_steps=2, count=4))
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == [f"step-00000{n}.{kind}" for n in (2, 4) for kind in ("histograms.json", "html", "jsonl")]
    bars = json.loads((tmp_path / "rollouts" / "step-000004.histograms.json").read_text())
    assert {name: sum(bar["counts"]) for name, bar in bars.items()} == {"low": 16, "repetition": 16, "total": 16}
    lines = [json.loads(line) for line in (tmp_path / "rollouts" / "step-000004.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    assert {line["step"] for line in lines} == {3}
    assert set(lines[0]["rewards"]) == {"low", "repetition"}
    page = (tmp_path / "rollouts" / "step-000004.html").read_text()
    assert "data:image/jpeg;base64" in page
    assert "total" in page


def test_the_adaptive_curriculum_tightens_while_the_policy_copes(tmp_path):
    made = AdaptiveBudgetCurriculum((4, 40), (2, 10), every_n_steps=2, target=0.6, slack=0.1, factor=0.5)
    assert made.next_high(40, 0.7, 0.0) == 20
    assert made.next_high(12, 0.7, 0.0) == 10  # never below the end
    assert made.next_high(20, 0.55, 0.0) == 20
    assert made.next_high(20, 0.7, 0.5) == 20  # copes, but is cut
    assert made.next_high(20, 0.3, 0.0) == 40
    assert made.next_high(40, 0.3, 0.0) == 40  # never above the start
    data = SimpleNamespace(calls=[], set_budgets=lambda *given: data.calls.append(given))
    module = SimpleNamespace(log_dict=lambda *a, **k: None)
    for step in range(1, 5):
        batch = SimpleNamespace(metrics={"mode/thinking_correct": 0.9, "rollout/truncated": 0.0})
        trainer = SimpleNamespace(global_step=step, datamodule=data, world_size=1)
        made.on_train_batch_end(trainer, module, None, batch, 0)
    assert [high for _, high, _ in data.calls] == [40, 20, 20, 10]
    again = AdaptiveBudgetCurriculum((4, 40), (2, 10))
    again.load_state_dict(made.state_dict())
    assert (again.high, again.history) == (10, made.history)
    with pytest.raises(ConfigError, match="factor"):
        AdaptiveBudgetCurriculum((4, 40), (2, 10), factor=1.5)


class Verdict(WantsLowIds):
    verdict = True


class Noting(AdaptiveBudgetCurriculum):
    """What it decides by, and what it decides."""

    def __init__(self, **options):
        super().__init__((0, 40), (0, 4), **{"every_n_steps": 2, "slack": 0.0, "most_truncated": 1.0, **options})
        self.decided = []

    def next_high(self, high, passed, truncated):
        new = super().next_high(high, passed, truncated)
        self.decided.append([passed, truncated, new])
        return new


def judged(**plan):
    rewards = RewardRouter({"low": Verdict()}, required=["low"])
    return stage_of(rewards=rewards, plan={"drop_zero_variance": False, **plan})


def test_budgets_move_once_a_decision_whatever_the_micro_batches(tmp_path):
    curriculum = Noting(target=0.0, factor=0.5)
    fit(judged(), data_of(tmp_path), tmp_path, 4, curriculum, accumulate_grad_batches=4)
    assert [high for *_, high in curriculum.decided] == [20, 10]


def test_a_resume_amid_a_collection_decides_by_the_same_figures(tmp_path):
    """Four updates a collection; the checkpoint of step 6 stands after the second of the second one."""

    def run(folder, steps, ckpt_path=None):
        curriculum, plan = Noting(target=0.3, every_n_steps=5), {"minibatches": 2, "epochs": 2}
        fit(judged(**plan), data_of(tmp_path), tmp_path / folder, steps, curriculum, ckpt_path=ckpt_path)
        return curriculum.decided

    whole, part = run("whole", 10), run("part", 6)
    assert part + run("part", 10, tmp_path / "part" / "checkpoints" / "last.ckpt") == whole


def test_processes_decide_the_budgets_alike_also_over_a_resume(tmp_path):
    data_of(tmp_path)  # writes the tokenizer

    def work(rank):
        os.environ["LOCAL_RANK"] = str(rank)

        def run(folder, steps, ckpt_path=None):
            curriculum, data = Noting(target=0.36), data_of(tmp_path, prompts_per_step=2)
            two = {
                "devices": 2,
                "strategy": DDPStrategy(process_group_backend="gloo"),
                "use_distributed_sampler": False,
            }
            fit(judged(), data, tmp_path / folder, steps, curriculum, ckpt_path=ckpt_path, **two)
            return curriculum.decided

        whole, part = run("whole", 6), run("part", 3)
        part += run("part", 6, tmp_path / "part" / "checkpoints" / "last.ckpt")
        (tmp_path / f"{rank}.json").write_text(json.dumps([whole, part]))

    in_ranks(work, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first[0]) == 3
    assert first == second
    assert first[0] == first[1]


def test_budgets_are_drawn_also_over_a_resume(tmp_path):
    curriculum = ThinkingBudgetCurriculum((4, 8), (0, 2), total_steps=6)
    fit(stage_of(), data_of(tmp_path), tmp_path, 3, curriculum)
    curriculum = ThinkingBudgetCurriculum((4, 8), (0, 2), total_steps=6)
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit(stage_of(), data_of(tmp_path), tmp_path, 5, Peek(), curriculum, ckpt_path=last)
    assert [entry[0] for entry in curriculum.history] == [1, 2, 3, 4, 5]
    assert (tmp_path / "budgets.png").stat().st_size > 2000
