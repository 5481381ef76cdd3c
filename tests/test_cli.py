"""bluelm-fit: files and overrides, and every mistake in one line that names the key."""

import textwrap
from pathlib import Path

import pytest
from cli_project import fit, refused

from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.arguments import split_arguments
from bluelm_lightning.cli.fit import main
from bluelm_lightning.cli.layers import Layers

pytest_plugins = ["cli_project"]
pytestmark = pytest.mark.usefixtures("own_folder")


def settings(project, *arguments):
    """The parsed settings."""
    return FitCLI(Layers(split_arguments(["--config", str(project / "stage.yaml"), *arguments]))).config


# ---------------------------------------------------------------- what is understood
def test_overrides_short_and_long(project):
    found = settings(
        project,
        "--model.projector.hidden_dim=48",
        "--model.vlm.decoder.config.head_dim",
        "16",
        "--data.batch_rows=4",
        "--model.init_args.clip_norm",
        "2",
    )
    parts = found.model.init_args.vlm.init_args
    assert (parts.projector.init_args.hidden_dim, parts.decoder.init_args.config["head_dim"]) == (48, 16)
    assert (found.data.init_args.batch_rows, found.model.init_args.clip_norm) == (4, 2.0)
    assert parts.decoder.init_args.config["hidden_size"] == 32, "an override inside a mapping keeps its other keys"


def test_null_overrides(project):
    found = settings(project, "--model.projector.hidden_dim=null", "--model.decoder.config.head_dim=null")
    assert found.model.init_args.vlm.init_args.projector.init_args.hidden_dim is None
    assert found.model.init_args.vlm.init_args.decoder.init_args.config["head_dim"] is None
    assert found.model.init_args.vlm.init_args.decoder.init_args.config["hidden_size"] == 32


def test_later_files_win_and_order_counts(project):
    Path("more.yaml").write_text("trainer: {max_steps: 7}\ndata: {init_args: {batch_rows: 5}}\n")
    found = settings(project, "--config", "more.yaml", "--trainer.max_steps=9")
    assert (found.trainer.max_steps, found.data.init_args.batch_rows) == (9, 5)
    assert settings(project, "--trainer.max_steps=9", "--config", "more.yaml").trainer.max_steps == 7


def test_fragments_are_found_by_name(project):
    found = settings(project, "--config", "fragments/samples.yaml", "--config", "fragments/cpu_debug.yaml")
    assert found.trainer.max_steps == 5
    assert found.trainer.callbacks[0].class_path.endswith("SampleTable")
    assert settings(project, "--config", "fragments/wandb.yaml").trainer.logger.class_path.endswith("WandbLogger")


def test_local_file_goes_before_packaged_one(project):
    Path("fragments").mkdir()
    Path("fragments/cpu_debug.yaml").write_text("trainer: {max_steps: 8}\n")
    assert settings(project, "--config", "fragments/cpu_debug.yaml").trainer.max_steps == 8


@pytest.mark.parametrize("how", ["file", "override"])
def test_a_list_replaces_a_list(project, how):
    """jsonargparse alone would keep the weights of the first list where the second has as many items."""
    sources = "[{path: x}, {path: y, thinking_share: 0.5}]"
    Path("more.yaml").write_text(f"data: {{init_args: {{sources: {sources}}}}}\n")
    given = ["--config", "more.yaml"] if how == "file" else [f"--data.sources={sources}"]
    found = settings(project, *given).data.init_args.sources
    assert [(spec.path, spec.weight, spec.thinking_share) for spec in found] == [("x", None, None), ("y", None, 0.5)]


def test_stage_schedule_and_data_can_be_replaced_by_name(project):
    found = settings(
        project,
        "--model=PretrainStage",
        "--data=PretrainDataModule",
        "--model.schedule.total_steps=null",
        "--model.schedule=Constant",
        "--model.schedule.warmup_steps=3",
    )
    assert found.model.class_path.endswith("PretrainStage")
    assert found.data.class_path.endswith("PretrainDataModule")
    assert found.model.init_args.schedule.init_args.warmup_steps == 3


def test_init_from_adds_up_on_the_command_line(project):
    Path("more.yaml").write_text("init_from: x.ckpt\n")
    assert settings(project, "--config", "more.yaml", "--init_from=a", "--init_from", "b").init_from == ["a", "b"]
    for argument, wanted in ((), "x.ckpt"), (("--init_from=a",), ["a"]), (("--init_from=null",), []):
        layers = Layers(split_arguments(["--config", "more.yaml", *argument]))
        assert layers.values["init_from"] == wanted


def test_print_config_can_be_given_back(project, capsys):
    assert fit(project, "--model.projector.hidden_dim=48", "--print_config") == 0
    printed = capsys.readouterr().out
    Path("again.yaml").write_text(printed)
    assert main(["--config", "again.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert "hidden_dim: 48" in printed


# ---------------------------------------------------------------- mistakes in overrides
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "--model.projector.hiden_dim=3",
            "model.vlm.projector.hiden_dim: unknown key of MLPProjector; did you mean hidden_dim?",
        ),
        ("--modl.x=1", "modl: unknown key; did you mean model?"),
        ("--trainer.max_step=3", "trainer.max_step: unknown key of Trainer; did you mean max_steps?"),
        ("--trainer.max_steps=abc", "trainer.max_steps: 'abc' is not an integer"),
        ("--trainer.max_steps=null", "trainer.max_steps: is null; give an integer"),
        ("--trainer.precision=7", "trainer.precision: 7 is not 64 or 32 or 16"),
        ("--data.batch_rows=many", "data.batch_rows: 'many' is not an integer"),
        ("--data.batch_rows=-4", "data.batch_rows: -4 is below 1"),
        ("--data.num_workers=-1", "data.num_workers: -1 is below 0"),
        ("--data.max_tiles=0", "data.max_tiles: 0 is below 1"),
        ("--data.sources=[{path: x, weight: -1}]", "data.sources[0].path: x does not exist; "),
        ("--data.sources=[{pth: x}]", "data.sources[0].pth: unknown key of SourceSpec; did you mean path?"),
        ("--data.tokenizer=runs/nothing", "data.tokenizer: folder runs/nothing does not exist; "),
        ("--model.optimizer.lr=.nan", "model.optimizer.lr: nan is not a number >= 0"),
        ("--model.optimizer.lr=-1", "model.optimizer.lr: -1.0 is not a number >= 0"),
        ("--model.clip_norm=-1", "model.clip_norm: -1.0 is negative"),
        (
            "--model.optimizer.groups=[{match: vlm.visio.*}]",
            "model.optimizer.groups: 'vlm.visio.*' matches no parameter",
        ),
        ("--model.frozen=[vlm.visio.*]", "model.frozen: 'vlm.visio.*' matches no parameter"),
        (
            "--model.projector=MLPProjecto",
            "model.vlm.projector: there is no Projector called 'MLPProjecto'; did you mean MLPProjector?",
        ),
        ("--model.vision=MLPProjector", "model.vlm.vision: MLPProjector is a Projector, not a VisionEncoder; "),
        ("--model.vision=bluelm_lightning.components.MLPProjector", "is a Projector, not a VisionEncoder; "),
        (
            "--model.projector=my_package.Projector",
            "model.vlm.projector: cannot import my_package.Projector: No module named",
        ),
        ("--model.projector=LinearProjector", "model.vlm.projector: LinearProjector takes no hidden_dim ("),
        (
            "--model.projector.vision_dim=33",
            "model.vlm.projector.vision_dim: the projector has vision_dim=33 but the vision tower is 24",
        ),
        ("--model.vision.weights=no.safetensors", "model.vlm.vision.weights: file no.safetensors does not exist; "),
        ("--model.decoder.checkpoint=/no", "model.vlm.decoder.checkpoint: /no does not exist; "),
        ("--model.vision.shape={a: {class_path: subprocess.Popen}}", "subprocess.Popen is refused"),
        (
            "--trainer.callbacks=LearningRateMonito",
            "trainer.callbacks: there is no Callback called 'LearningRateMonito'; did you mean",
        ),
        ("--trainer.default_root_dir=x", "trainer.default_root_dir: is the run folder here; give --run_dir instead"),
        ("--checkpoint_every_n_steps=0", "--checkpoint_every_n_steps: 0 is not a number of steps"),
        ("--ckpt_path=no.ckpt", "--ckpt_path: no.ckpt does not exist; "),
        ("--ckpt_path=last", "--ckpt_path: no checkpoints/last.ckpt in runs/stage-*; "),
        ("--init_from=no.ckpt", "--init_from: no.ckpt does not exist; "),
        ("--init_from=vision=no.ckpt", "--init_from: no.ckpt does not exist; "),
        ("--model.projector.hidden_dim", "--model.projector.hidden_dim: has no value; write it as --KEY=VALUE"),
        ("foo", "foo: is no option; "),
    ],
)
def test_wrong_override(project, capsys, argument, said):
    line = refused(capsys, "--config", str(project / "stage.yaml"), argument)
    assert said in line
    assert len(line) < 500


WHOLE = "items of a list cannot be set one by one; give the whole list (--%s='[...]'), or put it in a YAML"


@pytest.mark.parametrize(
    ("override", "key", "last"),
    [
        ("data.sources.0.weight=3", "data.sources", ""),
        ("data.sources.a.weight=null", "data.sources", ""),
        ("data.init_args.sources.0={path: x}", "data.sources", ""),
        ("model.optimizer.groups.0.lr=2", "model.optimizer.groups", ""),
        ("trainer.callbacks.0.every_n_steps=2", "trainer.callbacks", "RolloutTable"),
        ("trainer.callbacks.LearningRateMonitor.logging_interval=step", "trainer.callbacks", "RolloutTable"),
        ("trainer.callbacks.logging_interval=step", "trainer.callbacks", "RolloutTable"),
        ("trainer.callbacks.init_args.logging_interval=step", "trainer.callbacks", "RolloutTable"),
    ],
)
def test_an_override_of_an_item_of_a_list(project, capsys, override, key, last):
    callbacks = "--trainer.callbacks=[LearningRateMonitor, {class_path: RolloutTable}]"
    line = refused(capsys, "--config", str(project / "stage.yaml"), callbacks, f"--{override}")
    named = override.partition("=")[0].replace("init_args.", "")
    said = f"--{key}.KEY sets the last one, which is {last}; " if last else ""
    assert line == f"{named}: {said}{WHOLE % key}"


def test_an_override_of_the_last_callback(project, capsys):
    callbacks = "--trainer.callbacks=[LearningRateMonitor, {class_path: RolloutTable}]"
    changed = settings(project, callbacks, "--trainer.callbacks.every_n_steps=2").trainer.callbacks
    assert changed[-1].init_args.every_n_steps == 2
    given = ["--config", str(project / "stage.yaml")]
    line = refused(capsys, *given, callbacks, "--trainer.callbacks.every_n_steps=x")
    assert line == "trainer.callbacks.every_n_steps: 'x' is not an integer; correct it"
    line = refused(capsys, *given, "--trainer.callbacks.0.every_n_steps=2")
    assert line == f"trainer.callbacks.0: no class is named there yet; {WHOLE % 'trainer.callbacks'}"


# ---------------------------------------------------------------- several files
def test_later_file_that_drops_arguments(project, capsys):
    Path("later.yaml").write_text("model: {init_args: {schedule: {class_path: Constant}}}\n")
    line = refused(capsys, "--config", str(project / "stage.yaml"), "--config", "later.yaml")
    assert line.startswith("model.schedule: Constant takes no total_steps (")
    assert "stage.yaml)" in line
    Path("later.yaml").write_text("model: {class_path: SFTStage, init_args: {clip_norm: 3}}\n")
    assert settings(project, "--config", "later.yaml").model.init_args.clip_norm == 3, "the same class drops nothing"


def test_changes_of_loggers_are_seen_too(project, capsys):
    given = ["--config", str(project / "stage.yaml"), "--config", "fragments/wandb.yaml"]
    line = refused(capsys, *given, "--trainer.logger=TensorBoardLogger")
    assert line.startswith("trainer.logger: TensorBoardLogger takes no project (fragments/wandb.yaml)")


def test_shards_that_are_none(project, capsys):
    Path("empty").mkdir()
    line = refused(capsys, "--config", str(project / "stage.yaml"), "--data.val_sources=[{path: empty}]")
    assert line.startswith("data.val_sources[0].path: empty holds no .tar; ")


def test_constructor_errors_of_others_name_their_part(project, capsys):
    line = refused(capsys, "--config", str(project / "stage.yaml"), "--trainer.max_epochs=-5")
    assert line.startswith("trainer: MisconfigurationException: ")


def test_slips_in_a_component_of_ones_own_name_its_class(project, capsys, tmp_path, monkeypatch):
    code = """
    from torch import nn

    from bluelm_lightning.components import Projector


    class Hasty(Projector):
        def __init__(self, vision_dim: int, decoder_dim: int, hidden_dim: int = 8) -> None:
            self.layer = nn.Linear(vision_dim, decoder_dim)  # before super().__init__()
    """
    (tmp_path / "hasty_parts.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["--config", str(project / "stage.yaml"), "--model.projector=hasty_parts.Hasty"]
    line = refused(capsys, *given)
    assert line.startswith("model.vlm.projector: Hasty: AttributeError: cannot assign module before Module.__init__()")
    monkeypatch.setenv("BLUELM_DEBUG", "1")
    with pytest.raises(AttributeError, match="cannot assign module before"):
        main(given)
