"""bluelm-cache: killed and gone on, it writes the same bytes; a run on the cache has the loss of the live teacher."""

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
import yaml
from cli_project import fit, losses, stage, write_project
from tiny import random_doc, tiny_vlm

import bluelm_lightning
from bluelm_lightning.cli.cache import MOVING, _batches, _devices, _write, main
from bluelm_lightning.data.loader import PackedLoader, PackingPlan
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.errors import ConfigError

PARTS = ["--part-mb", "0.1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A distillation over pictures and text whose traces come and go; the teacher has other weights."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    settings = stage(folder)
    model = settings["model"]["init_args"]
    del model["vlm"]["init_args"]["projector"]["init_args"]["hidden_dim"]  # as tiny_vlm
    torch.save(tiny_vlm(seed=5).state_dict(), folder / "teacher.ckpt")
    model |= {"teacher": model["vlm"], "teacher_weights": str(folder / "teacher.ckpt"), "plan": {"weight": 0.5}}
    settings["model"]["class_path"] = "DistillStage"
    settings["data"]["init_args"]["sources"][0]["thinking_share"] = 0.5
    settings["trainer"]["max_steps"] = 24
    (folder / "stage.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def write(project: Path, out: str, *more: str) -> int:
    return main([str(project / "stage.yaml"), "--out", str(project / out), "--k", "0", *PARTS, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(project):
    assert write(project, "whole") == 0
    return project / "whole"


KILLED = """
import os, signal, sys
from bluelm_lightning.generation import teacher_cache
write_json = teacher_cache.write_json
def last_words(path, *value, **options):
    if path.name == "part-000002.json":
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, *value, **options)
teacher_cache.write_json = last_words
from bluelm_lightning.cli.cache import main
main(sys.argv[1:])
"""


def test_killed_within_a_part_it_goes_on_and_writes_the_same_bytes(project, whole, capsys):
    out = project / "killed"
    arguments = [str(project / "stage.yaml"), "--out", str(out), "--k", "0", *PARTS]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    names = {"begun.json", *(f"part-00000{n}.{kind}" for n in (0, 1) for kind in ("bin", "json")), "part-000002.bin"}
    assert files(out).keys() == names
    assert write(project, "killed") == 0
    assert re.search(r"going on after \d+ of 24 batches", capsys.readouterr().err)
    assert files(out) == files(whole)
    assert len(files(whole)) > len(names)


def test_a_run_finds_all_its_documents_in_the_cache_and_is_no_teacher(project, whole, capsys):
    from_cache = ["--model.teacher=null", "--model.teacher_weights=null", f"--model.cache={whole}"]
    assert fit(project, "--run_dir", str(project / "cached"), *from_cache) == 0
    assert len(losses(project / "cached")) == 24  # a second round of the samples with other traces
    assert main([str(project / "cached"), "--out", str(project / "of the student")]) == 2
    assert "cached learnt from a cache, its teacher is not there; give its YAML with" in capsys.readouterr().err


def test_each_command_that_is_shown_names_a_yaml_that_a_cache_can_follow():
    root = Path(bluelm_lightning.__file__).parent
    places = [root.parent / "README.md", root / "cli/cache.py", *root.glob("configs/**/*.yaml")]
    shown = {name for place in places for name in re.findall(r"bluelm-cache (\S+\.yaml)", place.read_text())}
    assert shown
    for name in shown:
        settings = yaml.safe_load((root / "configs" / name).read_text())
        assert settings["model"]["class_path"] == "DistillStage"
        names = [callback["class_path"] for callback in settings["trainer"].get("callbacks", [])]
        assert not set(names) & set(MOVING)


def test_devices_are_counted_as_the_trainer_counts_them():
    counts = {"4": 4, "0,1": 2, "0,": 1}
    assert {devices: _devices(devices, "cuda") for devices in counts} == counts
    assert [_devices(devices, "cuda") for devices in ([0, 1], (3,), 8)] == [2, 1, 8]
    assert [_devices(devices, "cpu") for devices in ("auto", None, 2)] == [1, 1, 2]
    assert _batches({"max_steps": 5, "accumulate_grad_batches": 3, "devices": "4", "num_nodes": 2}) == (8, 15)
    for devices in ("auto", None, -1, "-1", []):
        with pytest.raises(ConfigError, match=r"trainer\.devices: .* depends on the machine; .* --batches"):
            _devices(devices, "auto")


class Uneven:
    """A fetcher of documents of 4 or of 60 tokens."""

    def __getitem__(self, refs):
        return [random_doc((4, 60)[Random(30_000 + ref.index).random() < 0.5], 0, ref.index) for ref in refs]


def uneven(rank=0, world=1):
    return PackedLoader(Uneven(), Mixture([4000]), PackingPlan(64), 0, rank=rank, world_size=world)


def test_all_that_each_process_reads_is_read():
    """The one with more short documents comes further in the sources than four batches more of each would reach."""
    seen: set = set()
    writer = SimpleNamespace(reached=None, positions=0, commit=lambda reached: None)
    _write(writer, uneven(), 3, 300, lambda batch: seen.update(batch.refs))
    for rank in range(3):
        assert all(seen >= set(batch.refs) for batch in islice(uneven(rank, 3), 300))


def test_what_is_wrong_is_said_in_one_line(project, whole, capsys):
    sft, here = project / "sft.yaml", str(project / "stage.yaml")
    sft.write_text(yaml.safe_dump(stage(project)))
    phases = "--trainer.callbacks=[{class_path: LengthSchedule, init_args: {phases: [{step: 0, row_tokens: 64}]}}]"
    resampled = "--trainer.callbacks=[{class_path: KeyDataResampling, init_args: {policy: LearningProgress}}]"
    mistakes = {
        f"model.teacher: {sft} has none; give the YAML of a distillation": [str(sft), "--out", "x"],
        "holds a cache already": [here, "--out", str(whole)],
        "no-such.yaml does not exist": ["no-such.yaml", "--out", "x"],
        "holds no config.yaml": [str(whole), "--out", "x"],
        "KeyDataResampling moves the documents": [here, "--out", "x", resampled],
        "LengthSchedule moves the documents": [here, "--out", "x", phases],
        "--batches: -3 is below 1": [here, "--out", "x", "--batches", "-3"],
        "--batches: 0 is below 1": [here, "--out", "x", "--batches", "0"],
        "--k: -1 is below 0": [here, "--out", "x", "--k", "-1"],
        "--device: 'tpu' cannot be used: ": [here, "--out", "x", "--device", "tpu"],
        "--device: 'cuda:99' cannot be used: ": [here, "--out", "x", "--device", "cuda:99"],
        f"--out: {sft} is a file; give a folder": [here, "--out", str(sft)],
    }
    for said, arguments in mistakes.items():
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not Path("x").exists()
