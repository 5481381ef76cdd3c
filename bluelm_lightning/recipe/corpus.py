"""English text that every installation has: the docstrings of the scientific packages it depends on.

Our choice: no other text comes with packages that we need anyway. One module in ten is held out, by a hash of its path.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Sample

PACKAGES = ("numpy", "scipy", "sklearn")
_SHORTEST = 200  # characters; below it a docstring says little more than a name


def docstrings(split: str) -> Iterator[Sample]:
    """Pre-training documents, one a docstring, in the order of packages, modules and lines.

    Args:
        split: ``train`` or ``test``.

    Raises:
        ConfigError: another split, or a package that is not installed.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} is not one of train, test; name one of them")
    for package in PACKAGES:
        root = _folder(package)
        for path in sorted(root.rglob("*.py")):
            name = f"{package}/{path.relative_to(root)}"
            if "/tests/" not in name and (zlib.crc32(name.encode()) % 10 == 0) == (split == "test"):
                for line, text in _of_module(path):
                    yield Sample(id=f"{name}:{line}", source="docstrings", text=text)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{package} is not installed; pip install 'bluelm-lightning[quickstart]'")
    return Path(spec.origin).parent


def _of_module(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring that is long enough."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text and len(text) >= _SHORTEST:
                yield getattr(node, "lineno", 1), text
