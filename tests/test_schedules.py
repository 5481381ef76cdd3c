"""Schedules by hand-computed values."""

import math

import pytest

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.schedules import Constant, Schedule, WarmupCosine, WarmupStableDecay


def values(schedule: Schedule, steps) -> list[float]:
    return [schedule.value_at(step) for step in steps]


def test_constant_with_warmup():
    assert values(Constant(), [0, 1, 1000]) == [1, 1, 1]
    assert values(Constant(warmup_steps=4), range(6)) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine():
    schedule = WarmupCosine(total_steps=12, warmup_steps=4, final_ratio=0.2)
    # warm-up 1/4 .. 4/4; then 0.2 + 0.8 * (1 + cos(pi * (step - 4) / 8)) / 2
    assert values(schedule, [0, 3, 4]) == [0.25, 1, 1]
    assert schedule.value_at(6) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))  # a quarter of the way
    assert schedule.value_at(8) == pytest.approx(0.6)  # half of the way
    assert values(schedule, [12, 13, 500]) == pytest.approx([0.2, 0.2, 0.2])


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_stable_then_decay(shape, half):
    schedule = WarmupStableDecay(total_steps=20, decay_steps=4, warmup_steps=2, shape=shape)
    assert values(schedule, [0, 1, 2, 10, 16]) == [0.5, 1, 1, 1, 1]
    assert schedule.value_at(18) == pytest.approx(half)
    assert values(schedule, [20, 25]) == [0, 0]
    last = WarmupStableDecay(total_steps=20, decay_steps=4, final_ratio=0.1, shape=shape)
    assert last.value_at(18) == pytest.approx(0.1 + 0.9 * half)
    assert last.value_at(30) == pytest.approx(0.1)


@pytest.mark.parametrize("ratio", [-1.0, 1.5])
def test_a_last_factor_is_a_share(ratio):
    for build in (WarmupCosine, lambda *args, **options: WarmupStableDecay(*args, decay_steps=2, **options)):
        with pytest.raises(ConfigError, match=rf"model.schedule.final_ratio: {ratio} is not between 0 and 1"):
            build(10, final_ratio=ratio)


HORIZONS = [
    lambda start: WarmupCosine(total_steps=30, warmup_steps=5, start_step=start),
    lambda start: WarmupStableDecay(total_steps=30, decay_steps=10, warmup_steps=5, start_step=start),
    lambda start: Constant(warmup_steps=5, start_step=start),
]


@pytest.mark.parametrize("build", HORIZONS)
@pytest.mark.parametrize("stop", [3, 5, 12, 25])
def test_a_later_stage_continues_a_longer_horizon_exactly(build, stop):
    """A stage may end in the warm-up, on the plateau or in the decay; the next goes on where it stopped."""
    whole = values(build(0), range(30))
    assert values(build(0), range(stop)) + values(build(stop), range(30 - stop)) == whole


def test_a_horizon_longer_than_the_run_leaves_the_decay_to_the_next_stage():
    """The report: a schedule for 12T tokens of which 4T were trained ends far above its floor."""
    schedule = WarmupCosine(total_steps=1200, final_ratio=0.1)
    assert schedule.value_at(399) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 399 / 1200)))
    assert schedule.value_at(399) > 0.7


@pytest.mark.parametrize("build", HORIZONS)
def test_factors_stay_between_zero_and_one(build):
    assert all(0 <= value <= 1 for value in values(build(0), range(100)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(warmup_steps=-1), "warmup_steps=-1"),
        (lambda: WarmupCosine(10, start_step=-2), "start_step=-2"),
        (lambda: WarmupCosine(total_steps=10, warmup_steps=10), "total_steps=10 leaves no step after 10"),
        (lambda: WarmupStableDecay(10, decay_steps=8, warmup_steps=3), "total_steps=10 leaves no step after 10"),
        (lambda: WarmupStableDecay(10, decay_steps=0), "decay_steps: 0 is below 1"),
        (lambda: WarmupStableDecay(10, decay_steps=-3), "decay_steps: -3 is below 1"),
        (lambda: WarmupStableDecay(10, decay_steps=4, shape="cubic"), "'cubic' is not one of linear, sqrt"),
    ],
)
def test_impossible_schedules_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_horizons_that_just_fit():
    assert WarmupCosine(total_steps=10, warmup_steps=9).value_at(9) == 1
    assert values(WarmupStableDecay(10, decay_steps=8, warmup_steps=2), [1, 2, 6]) == [1, 1, 0.5]


def test_a_schedule_of_ones_own_needs_one_method():
    with pytest.raises(TypeError, match="Schedule must define after_warmup"):
        Schedule().value_at(0)


def test_a_schedule_that_inherits_goes_on_where_the_parent_stood():
    parent = WarmupCosine(total_steps=100, warmup_steps=10)
    child = WarmupCosine(total_steps=100, warmup_steps=10, start_step="inherit")
    child.inherit(40)
    assert [child.value_at(step) for step in range(5)] == [parent.value_at(40 + step) for step in range(5)]
    fixed = WarmupCosine(total_steps=100, warmup_steps=10, start_step=7)
    fixed.inherit(40)
    assert fixed.start_step == 7, "a number in the settings stays"
