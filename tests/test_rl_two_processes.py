"""Reinforcement learning on two processes (gloo) takes the same step as on one with the same prompts (DDP, sharded)."""

import pytest
import torch
from processes import run_processes
from tiny import worst


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for count, kind in ((1, []), (2, []), (2, ["sharded"])):
        run_processes("two_rl_processes.py", str(folder), f"{count}", *kind, folder=folder, count=count)
    return lambda name, world, rank: torch.load(folder / f"{name}-{world}-{rank}.pt")


@pytest.mark.parametrize("world", [2, "sharded"])
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_two_processes_take_the_step_of_one(runs, name, world):
    whole, ranks = runs(name, 1, 0), [runs(name, world, rank) for rank in (0, 1)]
    asked = [set(rank["prompts"][0]) for rank in ranks]
    assert asked[0].isdisjoint(asked[1])
    assert asked[0] | asked[1] == set(whole["prompts"][0])
    for gradient in whole["gradients"]:
        close = worst(ranks[0]["gradients"][gradient], whole["gradients"][gradient], floor=1e-3)
        assert close < 2e-4, gradient  # worst seen 2e-6
    assert all(torch.equal(value, ranks[1]["weights"][n]) for n, value in ranks[0]["weights"].items())
