"""Measured figures that are kept: one is measured again only when something that it depends on has changed.

It depends on the claim's file, the files of this room that it imports, the packaged YAML that these name, the data, the
seed and the package's version. Not on the rest of the code: after a change of a stage delete ``runs/reproduce``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from bluelm_lightning import __version__
from bluelm_lightning.recipe.prepare import training_sources
from bluelm_lightning.reproduce.claim import Measured

_CONFIGS = Path(__file__).parents[1] / "configs"
_MACHINE = {"claim", "figures", "lab", "prepare", "jobs", "report"}  # how figures are made, not what they are


def files_behind(path: Path) -> list[Path]:
    """A claim's file, what it imports from its own room, and the YAML files that these name, in a fixed order."""
    found, left = {path}, [path]
    while left:
        file = left.pop()
        if file.suffix != ".py":
            continue
        text = file.read_text(encoding="utf-8")
        imported = [own for name in _imports(text) if (own := path.parent / f"{name}.py").is_file()]
        named = [own for name in re.findall(r"tiny/\w+\.yaml", text) if (own := _CONFIGS / name).is_file()]
        left += (new := [own for own in (*imported, *named) if own not in found])
        found |= set(new)
    return sorted(found)


def _imports(text: str) -> set[str]:
    """Files of this room that a file imports; words that are none do no harm."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in nodes if (node.module or "").startswith("bluelm_lightning.reproduce")]
    return {
        name for node in own for name in (str(node.module).split(".")[-1], *(a.name for a in node.names))
    } - _MACHINE


def code_key(path: Path) -> str:
    """Of everything that a claim's figures depend on, but for data and seed."""
    contents = [[file.name, file.read_text(encoding="utf-8")] for file in files_behind(path)]
    return hashlib.sha256(json.dumps([__version__, contents]).encode()).hexdigest()[:16]


def sources_behind(path: Path) -> list[str]:
    """Training sources that a claim may read: ``data/NAME`` in its YAML, ``"NAME"`` in its code."""
    texts = [file.read_text(encoding="utf-8") for file in files_behind(path)]
    words = {name for text in texts for name in re.findall(r'(?:\bdata/|")(\w+)', text)}
    return sorted(words & set(training_sources(Path())))


class Figures:
    """Figures in files of ``folder``, one a claim and seed.

    Args:
        folder: of the files.
        data_key: of some sources by name.
    """

    def __init__(self, folder: Path, data_key: Callable[[Sequence[str]], str]) -> None:
        self.folder, self.data_key = folder, data_key

    def key(self, claim_file: Path) -> str:
        return f"{code_key(claim_file)} {self.data_key(sources_behind(claim_file))}"

    def read(self, number: int, seed: int, key: str) -> Measured | None:
        """The figure, if it was measured under ``key``."""
        path = self._path(number, seed)
        held = json.loads(path.read_text()) if path.is_file() else {}
        return Measured(**held["measured"]) if held.get("key") == key else None

    def write(self, number: int, seed: int, key: str, measured: Measured) -> None:
        path = self._path(number, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps({"key": key, "measured": asdict(measured)}, indent=1) + "\n")
        os.replace(half, path)  # a killed run leaves the old file or the new one

    def _path(self, number: int, seed: int) -> Path:
        return self.folder / f"claim_{number}_seed_{seed}.json"
