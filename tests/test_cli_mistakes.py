"""bluelm-fit: every mistake in a file in one line that names file, key and fix."""

from pathlib import Path

import pytest
import yaml
from cli_project import refused, stage

from bluelm_lightning.cli.config_files import parse_yaml

pytest_plugins = ["cli_project"]
pytestmark = pytest.mark.usefixtures("own_folder")


def wrong_file(project, change) -> str:
    content = stage(project)
    change(content)
    Path("wrong.yaml").write_text(yaml.safe_dump(content))
    return "wrong.yaml"


def parts(content):
    return content["model"]["init_args"]["vlm"]["init_args"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: parts(c)["projector"]["init_args"].update(hiden_dim=3),
            "model.vlm.projector.hiden_dim: unknown key of MLPProjector; did you mean hidden_dim? (in wrong.yaml)",
        ),
        (
            lambda c: parts(c).update(projecter=parts(c).pop("projector")),
            "model.vlm.projecter: unknown key of VisionLanguageModel; did you mean projector?",
        ),
        (
            lambda c: parts(c)["projector"].update(init_arg={}),
            "model.vlm.projector.init_arg: unknown key; did you mean init_args?",
        ),
        (
            lambda c: parts(c)["projector"]["init_args"].pop("vision_dim"),
            "model.vlm.projector.vision_dim: is missing; MLPProjector needs it",
        ),
        (
            lambda c: parts(c)["projector"].update(class_path="CausalDecoder"),
            "model.vlm.projector: CausalDecoder is a Decoder, not a Projector",
        ),
        (
            lambda c: c["model"].update(class_path="SFTStag"),
            "model: there is no Stage called 'SFTStag'; did you mean SFTStage?",
        ),
        (
            lambda c: c["model"]["init_args"]["optimizer"]["init_args"].update(lr="fast"),
            "model.optimizer.lr: 'fast' is not a number",
        ),
        (
            lambda c: c["model"]["init_args"].update(schedul=None),
            "model.schedul: unknown key of SFTStage; did you mean schedule?",
        ),
        (lambda c: c["data"]["init_args"].pop("tokenizer"), "data.tokenizer: is missing; SFTDataModule needs it"),
        (lambda c: c.pop("data"), "data: is missing; "),
        (lambda c: c["model"].update(clip_norm=3), "model.clip_norm: unknown key; put it under init_args"),
        (lambda c: c.update(trainr=c.pop("trainer")), "trainr: unknown key; did you mean trainer?"),
        (
            lambda c: c.update(init_from=3),
            "--init_from: 3 is not a path or a list of paths; correct it (in wrong.yaml)",
        ),
        (lambda c: c.update(trainer=None), "trainer: is empty; give keys and values, such as max_steps: 100 (in wrong"),
        (lambda c: c.update(trainer=[1]), "trainer: [1] is no mapping; give keys and values, such as"),
        (lambda c: c.update(trainer="x"), "trainer: 'x' is no mapping; give keys and values, such as"),
        (
            lambda c: c["data"].update(init_args=[1]),
            "data.init_args: [1] is no mapping; write argument: value (in wrong",
        ),
        (lambda c: c["trainer"].update(devices="two"), "trainer: TypeError: `devices` selected with `CPUAccelerator`"),
        (
            lambda c: c["trainer"].update(accumulate_grad_batches=0),
            "trainer.accumulate_grad_batches: 0 is below 1 (in w",
        ),
        (
            lambda c: c["trainer"].update(gradient_clip_val=1.0),
            "trainer.gradient_clip_val: is not followed, since the stage clips by the norm; take it away and set "
            "model.clip_norm (in wrong.yaml)",
        ),
        (
            lambda c: c["trainer"].update(gradient_clip_algorithm="value"),
            "trainer.gradient_clip_algorithm: is not followed, since the stage clips by the norm",
        ),
        (lambda c: c["data"]["init_args"].update(seed=-1), "data.seed: -1 is below 0 (in wrong.yaml)"),
        (
            lambda c: c["data"]["init_args"].update(row_tokens=None),
            "data.row_tokens: is null; give 1 or more (in wrong",
        ),
        (lambda c: c["data"]["init_args"].update(num_workers=None), "data.num_workers: is null; give 0 or more (in wr"),
        (
            lambda c: c["data"]["init_args"]["sources"][0].update(path="/tmp/{a"),
            "data.sources[0].path: /tmp/{a does not close a brace; write it as shard-{000..009}.tar (in wrong.yaml)",
        ),
        (
            lambda c: c["data"].update(class_path="PromptDataModule"),
            "data: SFTStage learns from documents, and PromptDataModule gives prompts; give it SFTDataModule or "
            "PretrainDataModule (in wrong.yaml)",
        ),
        (
            lambda c: c["model"].update(class_path="DPOStage"),
            "data: DPOStage learns from pairs, and SFTDataModule gives documents; give it PreferenceDataModule (in wr",
        ),
        (
            lambda c: c["trainer"].update(callbacks="RolloutTable"),
            "trainer.callbacks: SFTStage writes no rollouts; take RolloutTable away (in wrong.yaml)",
        ),
    ],
)
def test_wrong_file(project, capsys, change, said):
    assert said in refused(capsys, "--config", wrong_file(project, change))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "trainer:\n  max_steps: 3\n  max_steps: 4\n",
            "max_steps: stands twice in bad.yaml, lines 2 and 3; delete one",
        ),
        ("trainer:\n  max_steps: 3\n max_epochs\n", "--config: bad.yaml is no YAML: line 3: "),
        ("- 3\n", "--config: bad.yaml holds [3], not keys and values"),
        ("", "--config: bad.yaml holds None, not keys and values"),
        ("trainer:\n  3: 4\n", "3: is no text, and so no key in bad.yaml, line 2; write '3'"),
        ("yes: 4\n", "yes: is no text, and so no key in bad.yaml, line 1; write 'yes'"),
        ("? [a, b]\n: 3\n", "?: is no text, and so no key in bad.yaml, line 1; write a name"),
        ("data: {path: {{x}}}\n", "?: is no text, and so no key in bad.yaml, line 1; write a name"),
        ("a: 2020-13-45\n", "--config: bad.yaml is no YAML: line 1: '2020-13-45' is no timestamp (month must be"),
        ("a:\n- !!int x\n", "--config: bad.yaml is no YAML: line 2: 'x' is no int ("),
        ("a: !!bool x\n", "--config: bad.yaml is no YAML: line 1: 'x' is no bool ("),
        ("a: !!timestamp x\n", "--config: bad.yaml is no YAML: line 1: 'x' is no timestamp ("),
        ("a: &x [*x]\n", "--config: bad.yaml is no YAML: line 1: found unconstructable recursive node"),
    ],
)
def test_bad_yaml(capsys, text, said):
    Path("bad.yaml").write_text(text)
    assert said in refused(capsys, "--config", "bad.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("[{path: x, path: y}]", "--data.sources: path: stands twice, lines 1 and 1; delete one"),
        ("[{3: y}]", "--data.sources: 3: is no text, and so no key, line 1; write '3'"),
        ("2020-13-45", "data.sources: '2020-13-45' is not list"),
    ],
)
def test_bad_yaml_in_an_override(project, capsys, override, said):
    assert said in refused(capsys, "--config", str(project / "stage.yaml"), f"--data.sources={override}")


def test_a_merged_mapping_may_be_merged_again():
    """And the key that it overrides stands once."""
    text = "first: &first {steps: 1}\nin:\n  it: &second\n    <<: *first\n    steps: 2\nlast:\n  <<: *second\n"
    assert parse_yaml(text)["last"] == {"steps": 2}


def test_missing_config_lists_the_packaged_ones(capsys):
    assert "--config: nope.yaml does not exist; give a file or one of 3b/align.yaml, " in refused(
        capsys, "--config", "nope.yaml"
    )
    assert refused(capsys, "--config", "3b/stf.yaml").endswith("did you mean 3b/sft.yaml?")
    assert "--config: is missing; " in refused(capsys)
