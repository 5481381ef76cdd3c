"""bluelm-fit as a process: exit codes, where it runs, and what an import costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bluelm_lightning.cli.run_folder import RunFolder
from bluelm_lightning.errors import ConfigError

pytest_plugins = ["cli_project"]
pytestmark = pytest.mark.usefixtures("own_folder")


def test_processes_started_together_must_be_told_the_folder(monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("BLUELM_RUN_DIR", raising=False)
    with pytest.raises(ConfigError, match="--run_dir: is missing; 2 processes must agree"):
        RunFolder(None, None, ["stage.yaml"])
    assert RunFolder("here", None, ["stage.yaml"]).path == tmp_path / "here"
    monkeypatch.setenv("BLUELM_RUN_DIR", str(tmp_path / "there"))  # Lightning started this process
    assert RunFolder(None, None, ["stage.yaml"]).path == tmp_path / "there"


def run(*command, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, **options)


def test_process_exits_2_with_one_line(project):
    done = run(
        Path(sys.executable).with_name("bluelm-fit"), "--config", str(project / "stage.yaml"), "--trainer.max_step=3"
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "bluelm-fit: error: trainer.max_step: unknown key of Trainer; did you mean max_steps?"
    assert done.stdout == ""


def test_cheap_paths_import_nothing_heavy():
    code = """import sys
from bluelm_lightning.cli.fit import main

for argv in (["--version"], ["--help"], ["--config", "nope.yaml"]):
    main(argv)
heavy = {"torch", "lightning", "transformers", "jsonargparse"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "bluelm-fit 0." in done.stdout
    assert "--init_from PATH" in done.stdout


def test_package_imports_in_a_moment():
    code = "import time; t = time.perf_counter(); import bluelm_lightning; print(time.perf_counter() - t)"
    assert min(float(run(sys.executable, "-c", code).stdout) for _ in range(3)) < 0.3
