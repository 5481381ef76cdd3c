"""Config files: found by name, here or in the package, and read strictly."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from bluelm_lightning.errors import ConfigError

PACKAGED = Path(__file__).resolve().parent.parent / "configs"


def packaged_configs() -> list[str]:
    """Names that ``--config`` finds in the package: ``3b/sft.yaml``, ``fragments/wandb.yaml``, ..."""
    return sorted(path.relative_to(PACKAGED).as_posix() for path in PACKAGED.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """A file of that path, else the packaged file of that name.

    Raises:
        ConfigError: neither exists; the message lists the packaged names.
    """
    for path in (Path(name).expanduser(), PACKAGED / name):
        if path.is_file():
            return path
    names = packaged_configs()
    near = get_close_matches(name, names, 1, 0.75)
    fix = f"did you mean {near[0]}?" if near else f"give a file or one of {', '.join(names)}"
    raise ConfigError(f"{name} does not exist; {fix}", "--config")


def read_config(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ConfigError: no YAML, no mapping, or a key that stands twice (YAML itself would keep the last, in silence).
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except _TwiceError as error:
        first, second, key = error.args
        raise ConfigError(f"stands twice in {path}, lines {first} and {second}; delete one", key) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is no YAML: {_where(error)}; correct it", "--config") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {content!r:.40}, not keys and values; see 3b/sft.yaml", "--config")
    return content


def parse_yaml(text: str) -> Any:
    """YAML as jsonargparse reads it: ``1e-3`` is a number."""
    return yaml.load(text, _StrictLoader)


def _where(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


class _TwiceError(Exception):
    """(first line, second line, key)"""


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in lines and key != "<<":
                raise _TwiceError(lines[key], line, key)
            lines[key] = line
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+(?:[eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)
