"""Rewards from other packages: math-verify in a process that may be killed, reasoning-gym, TRL's own functions."""

import os
import pickle
import signal
import time

import pytest
from rollouts import rollout

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards.gym import ReasoningGym
from bluelm_lightning.rl.rewards.math_verify import MathVerify
from bluelm_lightning.rl.rewards.trl import TRLReward

HOSTILE = "(" * 26 + "1" + ")" * 26  # every parenthesis doubles the ways to read it


@pytest.fixture(scope="module")
def judge():
    made = MathVerify(timeout_s=1.5)
    yield made
    made.close()


def values(reward, rollouts):
    return [score.value for score in reward.score(rollouts)]


@pytest.mark.parametrize(
    ("reference", "answer", "wanted"),
    [
        ("0.5", "\\boxed{\\frac{1}{2}}", 1.0),
        ("\\{1, 2\\}", "$\\{2, 1\\}$", 1.0),
        ("x^2+2x+1", "$(x+1)^2$", 1.0),
        ("8", "9", 0.0),
        ("8", "blue", 0.0),
        ("8", "8" * 3000, 0.0),
    ],
)
def test_equal_as_mathematics(judge, reference, answer, wanted):
    assert values(judge, [rollout(f"{answer}</s>", reference)]) == [wanted]


def test_hostile_input_costs_its_timeout_and_nothing_more(judge):
    batch = [rollout("8</s>")] * 3 + [rollout(f"${HOSTILE}$</s>")] + [rollout("9</s>")] * 3
    values(judge, batch[:1])  # the worker is up
    started = time.monotonic()
    got = judge.score(batch)
    took = time.monotonic() - started
    assert [score.value for score in got] == [1.0] * 3 + [None] + [0.0] * 3
    assert "not judged within 1.5 s" in got[3].reason
    assert 1.4 < took < 12  # one timeout and the start of another worker


def test_a_worker_that_is_killed_is_replaced(judge):
    assert values(judge, [rollout("8</s>")]) == [1.0]
    os.kill(judge._process.pid, signal.SIGKILL)
    judge._process.wait()
    assert values(judge, [rollout("8</s>")]) == [1.0]


def test_it_travels_without_its_process(judge):
    again = pickle.loads(pickle.dumps(judge))
    assert (again.timeout_s, again._process) == (1.5, None)
    with pytest.raises(ConfigError, match="positive"):
        MathVerify(timeout_s=0)


def test_reasoning_gym_scores_by_its_own_rule():
    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)[0]
    task = {"dataset": "chain_sum", "entry": entry}
    right, wrong = rollout(f"{entry['answer']}</s>"), rollout("no idea</s>")
    for one in (right, wrong):
        one.prompt.sample.meta["reasoning_gym"] = task
    lost = rollout("1</s>")
    lost.prompt.sample.meta["reasoning_gym"] = {"dataset": "no_such_task", "entry": entry}
    got = ReasoningGym().score([right, wrong, rollout("8</s>"), lost])
    assert got[0].value == 1.0
    assert got[1].value < 1.0
    assert "no reasoning_gym entry" in got[2].reason
    assert got[3].value is None
    assert "no_such_task" in got[3].reason


def test_a_function_of_trl_works_unchanged():
    reward = TRLReward("trl.rewards.think_format_reward")
    good, bad = rollout("<think>\n3+5\n</think>\n8</s>"), rollout("8</s>")
    assert values(reward, [good, bad]) == [1.0, 0.0]


def test_columns_prompts_and_missing_scores():
    seen = {}

    def measure(prompts, completions, completion_ids, level, answer, **kwargs):
        seen.update(prompts=prompts, completions=completions, level=level, answer=answer, ids=completion_ids)
        return [None, 2]

    a, b = rollout("8</s>", level=3), rollout("9</s>", "5")
    got = TRLReward(measure, conversational=False).score([a, b])
    assert [score.value for score in got] == [None, 2.0]
    assert seen["completions"] == ["8", "9"]
    assert seen["prompts"] == ["what is it?"] * 2
    assert (seen["level"], seen["answer"]) == ([3, None], ["8", "5"])
    assert seen["ids"] == [a.ids.tolist(), b.ids.tolist()]

    async def later(prompts, completions, **kwargs):
        return [float(len(c[0]["content"])) for c in completions]

    assert values(TRLReward(later), [a, b]) == [1.0, 1.0]


@pytest.mark.parametrize("path", ["trl.rewards.no_such", "nothing", "math.pi"])
def test_a_path_to_nothing_is_refused(path):
    with pytest.raises(ConfigError, match="func"):
        TRLReward(path)
