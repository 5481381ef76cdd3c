"""The rules that keep the house liveable: who may import whom, what an import costs, how large anything may grow.

A room that is not in ``ARROWS`` fails: add it here and to the table of ARCHITECTURE.md.
"""

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import bluelm_lightning

PACKAGE = Path(bluelm_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

BASE = {"types", "errors"}
ARROWS: dict[str, set[str] | None] = {  # room -> rooms it may import besides itself; None: everything
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "data": BASE,
    "components": BASE,
    "generation": BASE | {"components", "data"},
    "rl": BASE | {"components", "generation", "data"},
    "stages": BASE | {"components", "generation", "rl"},
    "datamodules": BASE | {"data"},
    "callbacks": BASE,
    "evaluation": BASE | {"generation", "components", "data"},
    "export": BASE | {"components"},
    "cli": None,
    "quickstart": None,
    "recipe": None,
    "mixing": None,
    "synthesis": None,
    "inspection": BASE | {"data"},
    "reproduce": None,
}
FORBIDDEN = {"data": {"lightning"}, "types": {"lightning"}, "errors": {"lightning", "torch"}}  # anywhere in a room
# Imported in the function that uses them: seconds each, or missing where an extra is not installed.
HEAVY = {
    "transformers",
    "timm",
    "trl",
    "wandb",
    "torchvision",
    "webdataset",
    "datasets",
    "pyarrow",
    "vllm",
    "matplotlib",
}
HEAVY |= {"tokenizers", "sklearn", "easy_vqa", "reasoning_gym", "gguf", "math_verify", "rensa", "ray"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS, DEEPEST = 300, 45, 12, 2


class Import(NamedTuple):
    module: str  # dotted, "bluelm_lightning.data.loader"
    at_import: bool  # runs when the file is imported: not in a function, not for type checkers alone
    line: int


def imports_of(tree: ast.AST, file: str, at_import: bool = True) -> Iterator[Import]:
    """Every import of a file, wherever it stands. ``from bluelm_lightning import data`` counts as that module."""
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_import, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = ["bluelm_lightning", *Path(file).parts[:-1]]
            above = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "bluelm_lightning" else [module]
            yield from (Import(name, at_import, node.lineno) for name in names)
        else:
            yield from imports_of(node, file, at_import and not inside and not typing)


def room_of(file: str) -> str:
    """``data/chat.py`` -> data, ``types.py`` -> types."""
    return Path(file).parts[0].removesuffix(".py")


def wrong_arrows(file: str, tree: ast.AST) -> list[str]:
    room = room_of(file)
    if room not in ARROWS:
        return [f"{file}: the room {room!r} is in no table; say in ARROWS and in ARCHITECTURE.md what it may import"]
    allowed, wrong = ARROWS[room], []
    for module, at_import, line in imports_of(tree, file):
        parts = module.split(".")
        if parts[0] == "bluelm_lightning":
            target = parts[1] if len(parts) > 1 else "__init__"
            if allowed is not None and target != room and target not in allowed:
                wrong.append(f"{file}:{line}: {room} must not import {target}")
        elif parts[0] in FORBIDDEN.get(room, ()):
            wrong.append(f"{file}:{line}: {room} must not know of {parts[0]}")
        elif at_import and (parts[0] in HEAVY or (parts[0] == "torch" and room == "types")):
            wrong.append(f"{file}:{line}: import {parts[0]} inside the function that uses it")
    return wrong


# ---------------------------------------------------------------- the walk
def test_the_walk_finds_the_house():
    rooms = {room_of(file) for file in TREES}
    assert len(FILES) >= 60
    assert {"types", "errors", "data", "components", "generation", "stages", "datamodules", "callbacks", "cli"} <= rooms
    assert "data/loader.py" in TREES
    found = {module for file, tree in TREES.items() for module, *_ in imports_of(tree, file)}
    assert {"bluelm_lightning.types", "torch", "lightning", "transformers", "timm"} <= {
        *found, *(module.split(".")[0] for module in found)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("data/a.py", "import lightning as L", "data must not know of lightning"),
        ("data/a.py", "def f():\n  from lightning.pytorch import Trainer", "data must not know of lightning"),
        ("data/a.py", "from bluelm_lightning.stages import Stage", "data must not import stages"),
        (
            "components/a.py",
            "class A:\n  def f(self):\n    import bluelm_lightning.datamodules.base",
            "import datamodules",
        ),
        ("components/a.py", "from bluelm_lightning import data", "components must not import data"),
        ("components/a.py", "from .. import stages", "components must not import stages"),
        ("components/a.py", "from ..data.chat import END", "components must not import data"),
        ("stages/a.py", "from bluelm_lightning.data.packing import pack", "stages must not import data"),
        ("stages/a.py", "from bluelm_lightning.callbacks import Live", "stages must not import callbacks"),
        ("callbacks/a.py", "import bluelm_lightning.stages.metrics as m", "callbacks must not import stages"),
        (
            "callbacks/a.py",
            "if x:\n  from bluelm_lightning.datamodules import A",
            "callbacks must not import datamodules",
        ),
        ("datamodules/a.py", "from bluelm_lightning.components import A", "datamodules must not import components"),
        ("generation/a.py", "from bluelm_lightning.stages import A", "generation must not import stages"),
        ("evaluation/a.py", "from bluelm_lightning.cli.load import load_run", "evaluation must not import cli"),
        ("types.py", "import torch", "import torch inside the function"),
        ("types.py", "from bluelm_lightning.errors import DataError", "types must not import errors"),
        ("components/a.py", "import torch\nimport timm", "components/a.py:2: import timm inside the function"),
        ("cli/a.py", "try:\n  import wandb\nexcept ImportError: pass", "import wandb inside the function"),
        ("shop/a.py", "", "the room 'shop' is in no table"),
    ],
)
def test_the_walk_sees_a_wrong_arrow(file, source, message):
    [wrong] = wrong_arrows(file, ast.parse(source))
    assert message in wrong


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("types.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from torch import Tensor"),
        (
            "data/a.py",
            "import torch\nfrom bluelm_lightning.data.chat import END\nfrom bluelm_lightning.types import Ref",
        ),
        ("data/a.py", "from .chat import END\nfrom . import tiling\nfrom ..types import Ref"),
        ("components/a.py", "import lightning as L\ndef f():\n  import timm"),
        ("cli/a.py", "from bluelm_lightning import __version__\nfrom bluelm_lightning.stages import Stage"),
    ],
)
def test_the_walk_lets_right_arrows_pass(file, source):
    assert wrong_arrows(file, ast.parse(source)) == []


def test_no_arrow_is_wrong():
    assert not [wrong for file, tree in TREES.items() for wrong in wrong_arrows(file, tree)]


# ---------------------------------------------------------------- what an import costs
def fresh(code: str) -> dict:
    """What ``code`` leaves in ``out``, run in a new interpreter."""
    script = f"import sys, json, time\nout = {{}}\n{code}\nprint(json.dumps(out))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return json.loads(done.stdout)


def test_importing_the_package_is_cheap():
    code = "t = time.perf_counter(); import bluelm_lightning, bluelm_lightning.types, bluelm_lightning.errors\n"
    code += "out['seconds'] = time.perf_counter() - t; out['modules'] = sorted(sys.modules)"
    runs = [fresh(code) for _ in range(3)]
    heavy = {"torch", "lightning", "numpy", "PIL", "yaml", "jsonargparse", *HEAVY} & set(runs[0]["modules"])
    assert not heavy
    assert statistics.median(run["seconds"] for run in runs) < 0.3  # measured 0.01


def test_data_runs_without_lightning_and_without_what_it_does_not_use():
    names = [file.removesuffix(".py").replace("/", ".") for file in TREES if room_of(file) == "data"]
    assert "data.loader" in names
    modules = ", ".join(f"bluelm_lightning.{name.removesuffix('.__init__')}" for name in names)
    loaded = fresh(f"import {modules}\nout['modules'] = sorted(sys.modules)")["modules"]
    assert not {"lightning", *HEAVY} & set(loaded)


# ---------------------------------------------------------------- sizes
def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file}:{node.lineno} {node.name}", node


def test_no_file_is_long():
    files = [*FILES, *Path(__file__).parent.rglob("*.py")]
    sizes = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert not {file: lines for file, lines in sizes.items() if lines > MOST_LINES}


def test_no_function_is_long():
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert len(lengths) > 300
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES}


def test_no_constructor_takes_many_arguments():
    counts = {}
    for name, node in functions():
        if node.name == "__init__":
            given = node.args
            counts[name] = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs) - 1  # self apart
    assert max(counts.values()) > 8
    assert not {name: count for name, count in counts.items() if count > MOST_ARGUMENTS}


def test_folders_are_two_deep_at_most():
    folders = {path.relative_to(PACKAGE).parent for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml")}
    assert Path("configs/tiny") in folders
    assert not [str(folder) for folder in folders if len(folder.parts) > DEEPEST]
