"""Sharded weights (FSDP2) on two processes: the losses, weights and resumes of one process and of DDP."""

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from processes import run_processes
from test_stage import WHOLE, loader, trainer_of
from tiny import tiny_vlm, worst

from bluelm_lightning.components.weights import init_from
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages import RLStage, SFTStage, ShardedStrategy
from bluelm_lightning.stages.sharding import blocks, shard

SCENARIOS = ["tied", "untied", "checkpointed", "frozen", "half", "muon", "distill", "dpo_pairs", "reward_pairs"]
RESUMED = ["tied", "muon", "distill", "dpo_pairs"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``runs(name, strategy, processes)`` -> losses of each step, checkpoint."""
    folder = tmp_path_factory.mktemp("sharded")
    run_processes("sharded_runs.py", str(folder), "1", "none", *SCENARIOS, folder=folder, count=1)
    run_processes("sharded_runs.py", str(folder), "2", "ddp", *SCENARIOS, folder=folder)
    more = [*(f"{name}+resume" for name in RESUMED), "tied+from_ddp"]
    run_processes("sharded_runs.py", str(folder), "2", "fsdp", *SCENARIOS, *more, folder=folder)

    def read(name: str, strategy: str, processes: int = 2):
        path = folder / f"{name}-{strategy}-{processes}.ckpt"
        return torch.load(path.with_suffix(".losses")), torch.load(path, weights_only=True), path

    return read


def gap(mine, wanted) -> float:
    assert mine.keys() == wanted.keys()
    return max(worst(mine[name].float(), wanted[name].float(), floor=1e-3) for name in wanted)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_losses_and_weights_of_one(runs, name, strategy):
    """Rank 1 never sees a picture: it must neither hang nor weigh too much. Validation runs in between."""
    (losses, saved, _), (wanted, one, _) = runs(name, strategy), runs(name, "none", 1)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(wanted, rel=1e-5)  # worst seen 2.7e-7
    assert gap(saved["state_dict"], one["state_dict"]) < 2e-5  # worst seen 3.7e-6 (Muon)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_held_out_losses_by_source_are_those_of_one_process(runs, strategy):
    """Each source is on one process alone."""
    found, wanted = (torch.load(runs("tied", *place)[2].with_suffix(".val")) for place in ((strategy,), ("none", 1)))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert len(wanted) == 3


@pytest.mark.parametrize(("strategy", "processes"), [("none", 1), ("ddp", 2), ("fsdp", 2)])
def test_checkpointing_of_activations_changes_nothing(runs, strategy, processes):
    (losses, saved, _), (wanted, plain, _) = (runs(name, strategy, processes) for name in ("checkpointed", "tied"))
    assert losses == pytest.approx(wanted, rel=1e-6)
    assert gap(saved["state_dict"], plain["state_dict"]) < 2e-5


@pytest.mark.parametrize("name", RESUMED)
def test_a_resume_is_exact_to_the_last_bit(runs, name):
    (losses, saved, _), (whole_losses, whole, _) = runs(f"{name}+resume", "fsdp"), runs(name, "fsdp")
    assert losses == whole_losses[-len(losses) :]
    assert len(losses) == 2
    assert all(torch.equal(saved["state_dict"][key], value) for key, value in whole["state_dict"].items())


def test_a_run_of_ddp_goes_on_sharded(runs):
    (losses, saved, _), (wanted, whole, _) = runs("tied+from_ddp", "fsdp"), runs("tied", "ddp")
    assert losses == pytest.approx(wanted[-len(losses) :], rel=1e-5)
    assert gap(saved["state_dict"], whole["state_dict"]) < 2e-5


def test_the_checkpoint_is_an_ordinary_one(runs):
    """Same names and places in the optimizer as DDP writes; the next stage loads it on one process."""
    (_, sharded, path), (_, ddp, _) = runs("tied", "fsdp"), runs("tied", "ddp")
    ours, theirs = (saved["optimizer_states"][0] for saved in (sharded, ddp))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        assert worst(ours["state"][number]["exp_avg"], state["exp_avg"], floor=1e-3) < 1e-4
    vlm = tiny_vlm(config={"tie_word_embeddings": True})
    assert {row.component for row in init_from(vlm, path)} == {"vision", "projector", "decoder"}
    assert torch.equal(vlm.decoder.output_weight, sharded["state_dict"]["vlm.decoder.model.lm_head.weight"])
    distilled = runs("distill", "fsdp")[1]["state_dict"]
    assert not [name for name in distilled if name.startswith("teacher.")]


def test_every_block_is_a_group_of_its_own():
    found = blocks(SFTStage(tiny_vlm()))
    assert [type(block).__name__ for block in found] == ["Block"] * 2 + ["MLPProjector"] + ["LlamaDecoderLayer"] * 2


# ---------------------------------------------------------------- what is refused


def test_another_strategy_that_shards_is_refused():
    stage = type("Stage", (), {"trainer": type("T", (), {"strategy": FakeMesh()})()})()
    with pytest.raises(ConfigError, match=r"trainer.strategy: FakeMesh would write .*ShardedStrategy"):
        shard(stage, ())


class FakeMesh(ModelParallelStrategy):
    device_mesh = None


def test_what_a_sharded_policy_cannot_do_is_refused():
    from rl_runs import stage_of

    stage = stage_of(plan={"ahead": True})
    assert isinstance(stage, RLStage)
    stage.__dict__["_trainer"] = type("T", (), {"strategy": ShardedStrategy()})()
    with pytest.raises(ConfigError, match=r"model.plan.ahead: a thread cannot gather weights"):
        stage.configure_model()


@pytest.mark.parametrize("size", [0, 3])
def test_groups_must_divide_the_processes(size, tmp_path):
    def run():
        trainer_of(tmp_path, strategy=ShardedStrategy(size)).fit(SFTStage(tiny_vlm()), loader([WHOLE]))

    with pytest.raises(ConfigError, match=r"trainer.strategy.context_parallel"):
        run()
