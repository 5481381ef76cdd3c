"""bluelm-fit trains: the run folder, continuing, handing weights over, tracking."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_project import fit, losses

from bluelm_lightning.cli.fit import main

pytest_plugins = ["cli_project"]
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def finished(project, tmp_path_factory):
    """A run of six steps that was never stopped."""
    folder = tmp_path_factory.mktemp("finished") / "stage-20260101-120000"
    assert fit(project, f"--run_dir={folder}", "--trainer.max_steps=6") == 0
    return folder


def refused(capsys, project, *arguments) -> str:
    assert fit(project, *arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("bluelm-fit: error: ")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- the folder
def test_run_folder_has_everything(finished, project):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "lineage.json", "metrics.csv", "first_batch.txt", "checkpoints"
    }  # fmt: skip
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["last.ckpt"]
    assert sorted(losses(finished)) == [0, 1, 2, 3, 4, 5]
    lineage = json.loads((finished / "lineage.json").read_text())
    assert (lineage["status"], lineage["first_step"], lineage["last_step"]) == ("finished", 0, 6)
    assert lineage["command"][:3] == ["bluelm-fit", "--config", str(project / "stage.yaml")]
    assert lineage["data"]["a"]["samples"] == 24
    assert lineage["versions"]["torch"] == torch.__version__.split("+")[0]
    assert lineage["started"] <= lineage["ended"]
    assert lineage["parents"] == []


def test_default_folder_is_named_after_the_stage(project, capsys):
    assert fit(project, "--trainer.max_steps=1") == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("stage-20")
    assert f"for the next stage: --init_from {run}/checkpoints/last.ckpt" in capsys.readouterr().out


def test_folder_of_another_run_is_refused(finished, project, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert "holds another run; give an empty folder, or continue it" in refused(
        capsys, project, f"--run_dir={finished}"
    )
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_saved_config_gives_the_same_run(finished):
    again = Path("runs/again")
    assert main(["--config", str(finished / "config.yaml"), f"--run_dir={again}"]) == 0
    assert losses(again) == losses(finished)
    assert (again / "config.yaml").read_text() == (finished / "config.yaml").read_text()


def test_saved_config_names_its_next_run(finished):
    short = ["--trainer.max_steps=1", "--trainer.log_every_n_steps=10"]
    assert main(["--config", str(finished / "config.yaml"), *short]) == 0
    (run,) = Path("runs").iterdir()
    assert sorted(losses(run)) == [0], "also of a run that is shorter than from line to line"
    assert run.name.startswith("stage-20")
    assert run.name.count("-") == 2, "the old time is gone"


def test_a_mistake_found_late_leaves_no_folder(project, capsys):
    line = refused(capsys, project, "--model.decoder.vocab_size=290")
    assert line.startswith(
        "model.vlm.decoder.vocab_size: the tokenizer has 300 tokens but the decoder's vocabulary 290; "
    )
    assert list(Path("runs").iterdir()) == []


# ---------------------------------------------------------------- --ckpt_path
def test_continued_run_is_as_if_never_stopped(finished, project):
    assert fit(project, "--run_dir=runs/b", "--checkpoint_every_n_steps=2") == 0
    first = sha256(Path("runs/b/checkpoints/last.ckpt"))
    assert fit(project, "--run_dir=runs/b", "--ckpt_path=last", "--trainer.max_steps=6") == 0
    assert losses(Path("runs/b")) == losses(finished), "bit for bit, and in one metrics.csv"
    end, straight = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (Path("runs/b"), finished))
    assert all(torch.equal(end["state_dict"][key], value) for key, value in straight["state_dict"].items())
    assert yaml.safe_load(Path("runs/b/config-2.yaml").read_text())["trainer"]["max_steps"] == 6
    second = json.loads(Path("runs/b/lineage-2.json").read_text())
    assert second["parents"][0] == {
        "path": "runs/b/checkpoints/last.ckpt", "use": "ckpt_path", "components": None, "sha256": first
    }  # fmt: skip
    assert (second["first_step"], second["config"]) == (3, "config-2.yaml")


def test_a_checkpoint_continues_its_own_folder_and_drops_what_came_after_it(finished, project):
    assert fit(project, "--run_dir=runs/c", "--trainer.max_steps=2") == 0
    os.rename("runs/c/checkpoints/last.ckpt", "runs/c/checkpoints/early.ckpt")
    assert fit(project, "--ckpt_path=runs/c/checkpoints/early.ckpt", "--trainer.max_steps=5") == 0
    assert fit(project, "--ckpt_path=runs/c/checkpoints/early.ckpt", "--trainer.max_steps=4") == 0
    assert losses(Path("runs/c")) == {step: loss for step, loss in losses(finished).items() if step < 4}
    assert Path("runs/c/lineage-3.json").is_file()


def test_a_checkpoint_may_go_on_in_a_folder_of_its_own(finished, project):
    last = finished / "checkpoints/last.ckpt"
    assert fit(project, f"--ckpt_path={last}", "--run_dir=runs/fork", "--trainer.max_steps=7") == 0
    assert sorted(losses(Path("runs/fork"))) == [6]
    assert sorted(losses(finished)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.optimizer.lr=2e-3"], "model.optimizer.lr: the run was started with 0.001 and now has 0.002; "),
        (["--model.optimizer.weight_decay=0.2"], "model.optimizer.weight_decay: the run was started with 0.05 and now"),
        (["--model.optimizer.groups=null"], "model.optimizer.groups: the checkpoint has 4 parameter groups, this"),
        (["--trainer.max_steps=6"], "trainer.max_steps: the checkpoint stands at step 6 of 6; raise it"),
        (["--data.batch_rows=4"], "data.batch_rows: this run had 2 when it was saved and now has 4"),
        (["--init_from=LAST"], "--init_from: cannot go with --ckpt_path, which continues a run"),
    ],
)  # fmt: skip
def test_contradictions_of_a_continued_run(finished, project, capsys, arguments, said):
    last = str(finished / "checkpoints/last.ckpt")
    arguments = [argument.replace("LAST", last) for argument in arguments]
    given = [f"--ckpt_path={last}", "--run_dir=runs/x", "--trainer.max_steps=9", *arguments]
    assert refused(capsys, project, *given).startswith(said)


def test_a_checkpoint_that_is_none(project, capsys):
    Path("junk.ckpt").write_bytes(b"junk")
    assert refused(capsys, project, "--ckpt_path=junk.ckpt").startswith(
        "--ckpt_path: junk.ckpt is not a readable checkpoint"
    )


# ---------------------------------------------------------------- --init_from
def test_init_from_hands_over_whole_components(finished, project, capsys):
    last = finished / "checkpoints/last.ckpt"
    frozen = "--model.frozen=[vlm.vision.*, vlm.projector.*]"
    groups = "--model.optimizer.groups=null"
    assert fit(project, f"--init_from=vision,projector={last}", "--run_dir=runs/d", frozen, groups) == 0
    out = capsys.readouterr().out
    assert out.count("\nloaded ") == 2
    assert "loaded projector" in out
    before, after = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (finished, Path("runs/d")))
    same = {key: torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items()}
    assert all(value for key, value in same.items() if not key.startswith("vlm.decoder"))
    assert not all(value for key, value in same.items() if key.startswith("vlm.decoder"))
    assert after["global_step"] == 3, "a new run, from step 0"
    parent = json.loads(Path("runs/d/lineage.json").read_text())["parents"][0]
    assert (parent["use"], parent["components"]) == ("init_from", ["vision", "projector"])
    assert parent["sha256"] == sha256(last)


def test_init_from_that_does_not_fit(finished, project, capsys):
    last = finished / "checkpoints/last.ckpt"
    line = refused(capsys, project, f"--init_from={last}", "--model.projector.hidden_dim=41")
    assert "component 'projector' does not fit" in line
    line = refused(capsys, project, f"--init_from=visio={last}")
    assert line == "--init_from: no component 'visio'; this model has vision, projector, decoder"


# ---------------------------------------------------------------- what is added, and what is respected
def test_own_callbacks_and_progress_are_respected(project, capsys):
    own = "[{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 1, save_top_k: -1}}, Throughput]"
    assert fit(project, f"--trainer.callbacks={own}", "--trainer.enable_progress_bar=false", "--run_dir=runs/e") == 0
    names = sorted(path.name for path in Path("runs/e/checkpoints").iterdir())
    assert names == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "epoch=0-step=3.ckpt"]
    assert "step 1/3" not in capsys.readouterr().out


def test_nan_stops_with_one_line(project, capsys):
    assert fit(project, "--model.optimizer.lr=1e30", "--model.optimizer.groups=null", "--run_dir=runs/nan") == 1
    assert "bluelm-fit: stopped: step 2: loss is nan" in capsys.readouterr().err
    assert json.loads(Path("runs/nan/lineage.json").read_text())["status"] == "failed"


def test_wandb_without_an_account_is_offline(project, monkeypatch, capsys, recwarn):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert fit(project, "--config", "fragments/wandb.yaml", "--run_dir=runs/w", "--trainer.max_steps=2") == 0
    assert "W&B: no account on this machine, so offline" in capsys.readouterr().out
    assert not [warning for warning in recwarn if "cannot be reached" in str(warning.message)], "it was never asked"
    assert len(list(Path("runs/w/wandb").glob("offline-run-*/*.wandb"))) == 1
    assert sorted(losses(Path("runs/w"))) == [0, 1]
    assert "save_dir: ." in Path("runs/w/config.yaml").read_text(), "the folder of this run is not in the saved config"


def test_wandb_out_of_reach_goes_on_offline(project, monkeypatch):
    from lightning.pytorch.loggers import WandbLogger

    from bluelm_lightning.cli.tracking import close_loggers, start_loggers

    logger = WandbLogger(project="x", save_dir=str(Path.cwd()))
    opened = []

    def refuse_once(**settings):
        opened.append(settings.get("mode"))
        if len(opened) == 1:
            raise ConnectionError("no route to host")
        return original(**settings)

    import wandb

    original = wandb.init
    monkeypatch.setattr(wandb, "init", refuse_once)
    with pytest.warns(UserWarning, match="cannot be reached .no route to host.; going on offline"):
        start_loggers([logger], {"a": 1})
    assert opened == [None, "offline"]
    assert logger.experiment.config["a"] == 1
    close_loggers()


# ---------------------------------------------------------------- the process
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_exits_130_and_is_in_the_lineage(project):
    program = Path(sys.executable).with_name("bluelm-fit")
    command = [program, "--config", str(project / "stage.yaml"), "--run_dir=runs/i", "--trainer.max_steps=1000000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 130
    assert "Traceback" not in rest
    assert json.loads(Path("runs/i/lineage.json").read_text())["status"] == "interrupted"


def test_a_schedule_goes_on_where_the_parent_stood(finished, project, capsys):
    last = finished / "checkpoints" / "last.ckpt"
    inherits = "--model.schedule.start_step=inherit"
    assert fit(project, f"--init_from={last}", "--run_dir=runs/heir", inherits) == 0
    stood = torch.load(last, weights_only=True)["schedule"]["position"]
    assert torch.load("runs/heir/checkpoints/last.ckpt", weights_only=True)["schedule"]["start"] == stood > 0
    ended = [inherits, f"--model.schedule.total_steps={stood}", "--model.schedule.final_ratio=0"]
    assert fit(project, f"--init_from={last}", "--run_dir=runs/late", *ended) == 2
    assert f"the parent stands at step {stood}, where the schedule has ended; raise" in capsys.readouterr().err
    assert fit(project, "--run_dir=runs/orphan", inherits) == 2
    assert "no --init_from names a checkpoint of a stage" in capsys.readouterr().err
