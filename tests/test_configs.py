"""Every packaged YAML is built, and every tiny one takes a training step."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from cli_project import losses, metrics_rows
from test_preference import Preferences
from tiny import png, question, tiny_decoder, tiny_tokenizer

from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.arguments import split_arguments
from bluelm_lightning.cli.config_files import PACKAGED, packaged_configs
from bluelm_lightning.cli.fit import main
from bluelm_lightning.cli.layers import Layers
from bluelm_lightning.cli.summary import image_settings, summarize
from bluelm_lightning.data.shards import ShardWriter
from bluelm_lightning.types import Sample

NAMES = packaged_configs()
COMMANDS = {"data/": "bluelm-data", "mix/": "bluelm-mix"}  # folders whose files are another command's own
STAGES = [name for name in NAMES if not name.startswith(("fragments/", *COMMANDS))]
FRAGMENTS = [name for name in NAMES if name.startswith("fragments/")]
TINY = [name for name in NAMES if name.startswith("tiny/")]


def test_the_lists_are_not_empty():
    assert {"3b/align.yaml", "3b/pretrain.yaml", "3b/sft.yaml"} <= set(STAGES)
    assert "fragments/wandb.yaml" in FRAGMENTS
    assert len(TINY) >= 2
    assert len(NAMES) == len(list(PACKAGED.rglob("*.yaml")))


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """What an earlier command leaves: the decoder that bluelm-prune writes."""
    folder = tmp_path_factory.mktemp("parents")
    tiny_decoder(vocab_size=1088).model.save_pretrained(folder)
    return folder


def with_own_parents(name: str, parents: Path) -> list[str]:
    if "distill" not in name:
        return []
    decoder = yaml.safe_load((PACKAGED / name).read_text())["model"]["init_args"]["vlm"]["init_args"]["decoder"]
    pruned = [f"--model.vlm.decoder.checkpoint={parents}"] if "checkpoint" in decoder["init_args"] else []
    return ["--model.teacher_weights=null", *pruned]


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_built_on_the_meta_device(name, parents):
    cli = FitCLI(Layers(split_arguments(["--config", name, *with_own_parents(name, parents)])))
    cli.rehearse()
    assert cli.rehearsal_error is None
    summary = summarize(cli.rehearsed, **image_settings(cli.config))
    assert summary.parameters > 0
    assert cli.rehearsed_optimizer is not None, "every glob of its groups matches"


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_goes_with_a_stage(name):
    alone = FitCLI(Layers(split_arguments(["--config", "3b/sft.yaml"]))).config
    joined = FitCLI(Layers(split_arguments(["--config", "3b/sft.yaml", "--config", name]))).config
    assert joined.trainer != alone.trainer


@pytest.mark.parametrize("name", NAMES)
def test_says_how_to_run_it(name):
    comments = [line for line in (PACKAGED / name).read_text().splitlines() if line.startswith("#")]
    command = next((command for start, command in COMMANDS.items() if name.startswith(start)), "bluelm-fit --config")
    assert any(command in line and name in line for line in comments)


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_a_screen(name):
    assert max(map(len, (PACKAGED / name).read_text().splitlines())) <= 120


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tokenizer and shards with conversations in both modes, documents and pictures of several tiles."""
    folder = tmp_path_factory.mktemp("data")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    with ShardWriter(folder / "shards") as writer:
        for n in range(32):
            sample = question(f"how many? {n}", "a red circle", id=f"q{n}", images=1)
            sample.answer = "a red circle"
            sample.images = [png(64, 64 * (1 + n % 2), seed=n)]
            if n % 2:
                sample.messages[-1]["thinking"] = "one, two"
            writer.write(sample)
            writer.write(Sample(id=f"t{n}", source="text", text="the sum is 12 " * 4))
    with ShardWriter(folder / "pairs") as writer:
        for sample in (Preferences()[n] for n in range(12)):
            sample.images = [png(64, 64, seed=1)] * len(sample.images)
            writer.write(sample)
    with ShardWriter(folder / "texts") as writer:
        for n in range(32):
            writer.write(Sample(id=f"t{n}", source="text", text="the sum is 12 " * 4))
    return folder


def with_own_data(name: str, data: Path) -> list[str]:
    """Overrides that put the test's data in the place of the YAML's, source by source."""
    settings = yaml.safe_load((PACKAGED / name).read_text())
    arguments = settings["data"]["init_args"]
    reads_text = settings["model"]["init_args"]["vlm"]["class_path"] == "LanguageModel"
    reads_pairs = settings["data"]["class_path"] == "PreferenceDataModule"
    shards = str(data / ("texts" if reads_text else "pairs" if reads_pairs else "shards"))
    changed = {"tokenizer": str(data / "tokenizer")}
    for key in ("sources", "val_sources"):
        changed[key] = [_moved(spec, shards) for spec in arguments.get(key) or []]
    return [f"--data.{key}={value if key == 'tokenizer' else json.dumps(value)}" for key, value in changed.items()]


def _moved(spec: dict, path: str) -> dict:
    if "source" in spec:  # a source of its own, over a path
        return {**spec, "source": {**spec["source"], "init_args": {"path": path}}}
    return {**spec, "name": spec.get("name") or spec["path"].rsplit("/", 1)[-1], "path": path}


@pytest.mark.parametrize("name", TINY)
def test_tiny_stage_takes_a_step(name, data, parents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ["--trainer.max_steps=1", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=1"]
    where = ["--run_dir=run", "--init_from=null", "--data.num_workers=0"]
    rewarded = name.endswith(("rl.yaml", "ppo.yaml"))
    rl = ["--model.rewards.rewards.repetition={class_path: Repetition, init_args: {ngram: 1}}"] * rewarded
    own = [*with_own_data(name, data), *with_own_parents(name, parents)]
    inherits = ["--model.schedule.start_step=0"] * ("inherit" in (PACKAGED / name).read_text())
    assert main(["--config", name, *own, *steps, *where, *rl, *inherits]) == 0
    if rl:  # a random model is never right, but repeats its tokens more or less
        (row,) = (row for row in metrics_rows(Path("run")) if row["policy/loss"])
        assert float(row["policy/ratio"]) == 1.0
        assert float(row["reward/repetition/std"]) > 0
    else:
        (loss,) = losses(Path("run")).values()
        assert 0 < float(loss) < 20
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 1
