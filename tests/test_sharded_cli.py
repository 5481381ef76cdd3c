"""bluelm-fit with sharded weights: built on the meta device, but for process 0, and sent from there."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from cli_project import fit, write_project
from lightning.pytorch.utilities import rank_zero_only

from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.arguments import split_arguments
from bluelm_lightning.cli.layers import Layers


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("project"))
    strategy = {"class_path": "bluelm_lightning.stages.ShardedStrategy", "init_args": {"process_group_backend": "gloo"}}
    sharded = {"trainer": {"devices": 2, "strategy": strategy}}
    (folder / "sharded.yaml").write_text(yaml.safe_dump(sharded))
    return folder


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_process_0_holds_the_weights_before_they_are_shared_out(rank, project, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)  # restored afterwards: Lightning sets it
    files = [token for name in ("stage", "sharded") for token in ("--config", str(project / f"{name}.yaml"))]
    cli = FitCLI(Layers(split_arguments(files)))
    cli.rehearse()
    cli.build(lambda trainer: {})
    assert cli.receives == bool(rank)
    assert {p.is_meta for p in cli.model.parameters()} == {bool(rank)}


def test_two_processes_begin_with_the_weights_of_one_and_go_on_from_a_file(project, tmp_path):
    """A learning rate of 0: what the run saves is what it began with."""
    still = ["--model.optimizer.lr=0", "--model.optimizer.groups=[]", "--trainer.max_steps=2"]
    assert fit(project, *still, "--run_dir", str(tmp_path / "one")) == 0
    assert fit(project, "--trainer.max_steps=2", "--run_dir", str(tmp_path / "trained")) == 0
    parent = tmp_path / "trained" / "checkpoints" / "last.ckpt"
    for name, more in (("drawn", []), ("given", ["--init_from", str(parent)])):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
            "--rdzv_endpoint=localhost:0", "-m", "bluelm_lightning.cli.fit", "--config", str(project / "stage.yaml"),
            "--config", str(project / "sharded.yaml"), "--run_dir", str(tmp_path / name), *still, *more,
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=env, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        lineage = json.loads((tmp_path / name / "lineage.json").read_text())
        assert lineage["stage"] == "bluelm_lightning.stages.sft.SFTStage"
    for name, wanted in (("drawn", tmp_path / "one"), ("given", tmp_path / "trained")):
        mine, theirs = weights(tmp_path / name), weights(wanted)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name
    assert not all(torch.equal(value, weights(tmp_path / "one")[key]) for key, value in theirs.items())
