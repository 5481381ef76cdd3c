"""The quickstart's own model as a parent: its data and its first three stages, run once for all seeds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from bluelm_lightning.quickstart import prepare as quickstart
from bluelm_lightning.recipe.runs import literal
from bluelm_lightning.reproduce.jobs import locked
from bluelm_lightning.reproduce.lab import ForkedRuns, Lab

_PACKAGE = Path(__file__).parents[1]
# of tiny/align.yaml, tiny/pretrain.yaml, tiny/sft.yaml
STAGES = {"align": (), "pretrain": ("{align}",), "sft": ("{pretrain}",)}


def folder(lab: Lab) -> Path:
    """Where its data and runs are."""
    return lab.root / "quickstart"


def model(lab: Lab) -> Path:
    """The run folder of its fine-tuned model, trained the first time."""
    root = folder(lab)
    with locked(root / "lock"):
        note, key = root / "data.key", data_key()
        if not note.is_file() or note.read_text() != key:
            quickstart.prepare(root)
            note.write_text(key)
        runs = ForkedRuns(root, key)
        for name, parents in STAGES.items():
            runs.fit(name, f"tiny/{name}.yaml", parents, own_data(lab, name))
    return root / "sft"


def own_data(lab: Lab, stage: str, sources: list[dict[str, Any]] | None = None) -> list[str]:
    """Options that point a stage of the quickstart to the lab's copy of its data, or to other ``sources``."""
    given = yaml.safe_load((_PACKAGE / "configs" / "tiny" / f"{stage}.yaml").read_text())["data"]["init_args"]
    text = json.dumps(sources or given["sources"]).replace("runs/quickstart", str(folder(lab)))
    options = [f"--data.tokenizer={folder(lab) / 'tokenizer'}", literal(f"--data.sources={text}")]
    return [*options, "--data.val_sources=null", "--trainer.callbacks=[]"]


def data_key() -> str:
    """Of the code that makes its data."""
    files = sorted((_PACKAGE / "quickstart").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
