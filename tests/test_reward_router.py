"""The router asks the rewards that a prompt names, and a reward that fails is missing, not zero."""

import re
import threading

import pytest
from rollouts import rollout

from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.rl.forensics import mode_obedience, rollout_metrics
from bluelm_lightning.rl.rewards import ExactMatch, Format, Reward, RewardRouter
from bluelm_lightning.types import Score


class Fixed(Reward):
    """Gives what it was told to, and remembers whom it was asked about."""

    def __init__(self, *values):
        self.values, self.asked = values, []

    def score(self, rollouts):
        self.asked += [r.prompt.sample.id for r in rollouts]
        return [Score(v, "" if v is not None else "the judge was silent") for v in self.values[: len(rollouts)]]


class Broken(Reward):
    def score(self, rollouts):
        raise RuntimeError("no connection\nto the judge")


def test_a_prompt_names_its_rewards_and_their_weights():
    a, b = Fixed(1.0, 1.0), Fixed(0.5, 0.5)
    router = RewardRouter({"a": a, "b": b, "c": Fixed(9.0, 9.0)}, weights={"b": 2.0}, default=["a"])
    plain, listed, mapped = rollout("8</s>", group=0), rollout("8</s>", group=1), rollout("8</s>", group=2)
    listed.prompt.sample.meta["rewards"] = ["a", "b"]
    mapped.prompt.sample.meta["rewards"] = {"b": -1.0}
    scored = router.score([plain, listed, mapped])
    assert [item.total for item in scored] == [1.0, 2.0, -0.5]
    assert [sorted(item.rewards) for item in scored] == [["a"], ["a", "b"], ["b"]]
    assert (a.asked, b.asked) == (["s0", "s1"], ["s1", "s2"])


def test_a_reward_that_fails_is_missing_and_named(caplog):
    router = RewardRouter({"judge": Broken(), "correct": ExactMatch()})
    (scored,) = [router.score([rollout("8</s>")]) for _ in range(2)][-1]
    assert caplog.text.count("reward judge is missing: RuntimeError: no connection") == 1, "once, not a line a batch"
    assert scored.rewards["judge"] == Score(None, "RuntimeError: no connection")
    assert scored.total == 1.0
    metrics = rollout_metrics([scored])
    assert metrics["reward/judge/missing"] == 1.0
    assert metrics["reward/correct/mean"] == 1.0


@pytest.mark.parametrize("silent", [Broken(), Fixed(None), Fixed(), Fixed(float("nan"))])
def test_without_a_required_reward_there_is_no_total(silent):
    router = RewardRouter({"judge": silent, "correct": ExactMatch()}, required=["judge"])
    (scored,) = router.score([rollout("8</s>")])
    assert scored.total is None
    assert scored.rewards["judge"].value is None
    assert scored.rewards["judge"].reason


@pytest.mark.parametrize("bad", [Broken(), Fixed(), Fixed(float("inf"))])
def test_a_run_may_stop_instead(bad):
    with pytest.raises(DataError, match=r"reward judge: .*set on_error: missing"):
        RewardRouter({"judge": bad}, on_error="stop").score([rollout("8</s>")])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, 0.0], "returned float, give Score(value)"),
        ([Score("1"), Score("0")], "TypeError: must be real number, not str"),
        (None, "returned None, give a list of Score"),
    ],
)
def test_what_are_no_scores_is_missing_or_stops_too(given, said):
    class Plain(Reward):
        def score(self, rollouts):
            return given

    batch = [rollout("8</s>"), rollout("9</s>")]
    scored = RewardRouter({"right": Plain()}).score(batch)
    assert [item.rewards["right"] for item in scored] == [Score(None, said)] * 2
    with pytest.raises(DataError, match=f"reward right: .*{re.escape(said)}; correct it or set on_error: missing"):
        RewardRouter({"right": Plain()}, on_error="stop").score(batch)


def test_rewards_run_side_by_side():
    meet = threading.Barrier(2, timeout=10)

    class Waits(Reward):
        def score(self, rollouts):
            meet.wait()  # breaks if the other is not asked at the same time
            return [Score(1.0)] * len(rollouts)

    (scored,) = RewardRouter({"a": Waits(), "b": Waits()}, on_error="stop").score([rollout("8</s>")])
    assert scored.total == 2.0


def test_unknown_names_are_refused():
    stray = rollout("8</s>")
    stray.prompt.sample.meta["rewards"] = ["corect"]
    with pytest.raises(DataError, match="'corect' is not one of correct"):
        RewardRouter({"correct": ExactMatch()}).score([stray])
    with pytest.raises(ConfigError, match=r"model\.rewards\.weights"):
        RewardRouter({"correct": ExactMatch()}, weights={"corect": 1.0})
    with pytest.raises(ConfigError, match="at least one"):
        RewardRouter({})
    with pytest.raises(ConfigError, match="on_error"):
        RewardRouter({"correct": ExactMatch()}, on_error="ignore")


def test_mode_obedience_and_shares():
    batch = [
        rollout("<think>3+5</think>8</s>"),
        rollout("<think> </think>9</s>"),
        rollout("8</s>"),  # asked to think, did not
        rollout("8</s>", thinking=False),
        rollout("8</think></s>", thinking=False),  # leaks
    ]
    got = mode_obedience(batch)
    assert got == {"mode/switch_accuracy": 4 / 5, "mode/think_leak": 1 / 2, "mode/empty_think": 1 / 2}
    scored = RewardRouter({"correct": ExactMatch(), "format": Format()}).score([*batch, rollout("8", group=1)])
    metrics = rollout_metrics(scored)
    assert metrics["rollout/truncated"] == pytest.approx(1 / 6)
    assert metrics["rollout/unanswered"] == pytest.approx(1 / 6)
    assert metrics["rollout/zero_variance"] == pytest.approx(1 / 2)  # the second group is one rollout
    assert metrics["reward/correct/mean"] == pytest.approx(3 / 6)
    assert metrics["reward/correct/std"] == pytest.approx(1 / 2)
