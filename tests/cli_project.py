"""A folder with a tokenizer, two sources and a stage, and bluelm-fit run in this process: fixtures and helpers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from tiny import TILE, TINY_LM, VOCAB, question, tiny_tokenizer

from bluelm_lightning.cli.fit import main
from bluelm_lightning.data.shards import ShardWriter


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def write_project(folder: Path) -> Path:
    """``tokenizer/``, ``shards/a``, ``shards/b`` and ``stage.yaml``, which names them by absolute paths."""
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    for name in ("a", "b"):
        with ShardWriter(folder / "shards" / name) as writer:
            for n in range(24):
                sample = question(f"what is {n}?", f"a red circle {n}", images=n % 3, id=f"{name}{n}", source=name)
                if n % 2:
                    sample.messages[-1]["thinking"] = "let me see"
                writer.write(sample)
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage(folder), sort_keys=False))
    return folder


def stage(folder: Path) -> dict:
    """The settings of ``stage.yaml``: three steps of a model of 57 thousand parameters."""
    vision = {"image_size": TILE, "shape": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}}
    vision["model_name"] = "vit_base_patch16_siglip_224"
    parts = {
        "vision": {"class_path": "ViTEncoder", "init_args": vision},
        "projector": {
            "class_path": "MLPProjector",
            "init_args": {"vision_dim": 24, "decoder_dim": TINY_LM["hidden_size"], "hidden_dim": 40},
        },
        "decoder": {"class_path": "CausalDecoder", "init_args": {"config": dict(TINY_LM), "vocab_size": VOCAB}},
    }
    arguments = {
        "vlm": {"class_path": "VisionLanguageModel", "init_args": parts},
        "optimizer": {
            "class_path": "AdamW",
            "init_args": {"lr": 1e-3, "groups": [{"match": "vlm.vision.*", "lr": 1e-4}]},
        },
        "schedule": {"class_path": "WarmupCosine", "init_args": {"total_steps": 10, "warmup_steps": 2}},
    }
    data = {
        "tokenizer": str(folder / "tokenizer"),
        "sources": [{"path": str(folder / "shards" / name), "weight": 1} for name in ("a", "b")],
        "row_tokens": 128,
        "batch_rows": 2,
        "num_workers": 0,
    }
    return {
        "model": {"class_path": "SFTStage", "init_args": arguments},
        "data": {"class_path": "SFTDataModule", "init_args": data},
        "trainer": {"max_steps": 3, "accelerator": "cpu", "log_every_n_steps": 1},
    }


def fit(project: Path, *arguments: str) -> int:
    """``bluelm-fit --config stage.yaml`` and more. Returns the exit code."""
    return main(["--config", str(project / "stage.yaml"), *arguments])


def refused(capsys, *argv) -> str:
    """The one line of a refusal."""
    assert main(list(argv)) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1, err
    assert err[0].startswith("bluelm-fit: error: ")
    assert not Path("runs").exists() or not list(Path("runs").iterdir())
    return err[0].removeprefix("bluelm-fit: error: ")


def losses(run: Path) -> dict[int, str]:
    """Training loss by step, as it stands in metrics.csv."""
    return {int(row["step"]): row["train/loss"] for row in metrics_rows(run) if row["train/loss"]}


def metrics_rows(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
