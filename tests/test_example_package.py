"""Parts of a package outside this one, installed like any other and named by class_path: train, save, load."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_project import fit, losses

pytest_plugins = ["cli_project"]

HERE = Path(__file__).parent / "example_package"
PARTS = [
    "--model.projector.hidden_dim=null",  # or the MLPProjector's argument would be lost without a word
    "--model.projector=example_parts.PoolProjector",
    "--model.projector.scale=2.0",
    "--data.sources=[{source: {class_path: example_parts.CountingSource, init_args: {size: 40}}}, {path: %s}]",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where pip put the package: built from a copy, with what is in this environment, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(HERE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "site", folder / "source"], check=True, timeout=120)
    assert (folder / "site" / "example_parts-0.1.dist-info").is_dir()
    return folder / "site"


@pytest.fixture
def run(project, installed, tmp_path, monkeypatch):
    """bluelm-fit with the package's parts, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(installed))
    arguments = [*PARTS[:-1], PARTS[-1] % (project / "shards/a")]
    return lambda *more: fit(project, *arguments, *more)


def test_trains_saves_and_loads(run, capsys):
    assert run("--run_dir=runs/a", "--trainer.max_steps=4") == 0
    assert "PoolProjector" in capsys.readouterr().out
    assert run("--run_dir=runs/b", "--trainer.max_steps=2") == 0
    assert run("--run_dir=runs/b", "--ckpt_path=last", "--trainer.max_steps=4") == 0
    assert losses(Path("runs/a")) == losses(Path("runs/b"))
    assert "train/loss/CountingSource" in Path("runs/a/metrics.csv").read_text()
    saved = torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "vlm.projector.gate" in saved
    assert run("--run_dir=runs/c", "--init_from=projector=runs/a/checkpoints/last.ckpt", "--trainer.max_steps=1") == 0
    assert "loaded projector" in capsys.readouterr().out


def test_its_arguments_are_checked_like_ours(run, capsys):
    assert run("--model.projector.scal=3") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["bluelm-fit: error: model.vlm.projector.scal: unknown key of PoolProjector; did you mean scale?"]
    assert run("--model.vision=example_parts.PoolProjector") == 2
    assert "example_parts.PoolProjector is a Projector, not a VisionEncoder" in capsys.readouterr().err
