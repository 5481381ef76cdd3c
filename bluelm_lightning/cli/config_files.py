"""Config files: found by name, here or in the package, and read strictly."""

from __future__ import annotations

import re
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from bluelm_lightning.errors import ConfigError

PACKAGED = Path(__file__).resolve().parent.parent / "configs"


def packaged_configs() -> list[str]:
    """Names that ``--config`` finds in the package: ``3b/sft.yaml``, ``fragments/wandb.yaml``, ..."""
    return sorted(path.relative_to(PACKAGED).as_posix() for path in PACKAGED.rglob("*.yaml"))


def find_config(name: str, key: str = "--config", fits: str = "*") -> Path:
    """A file of that path, else the packaged file of that name.

    Args:
        name: what was given.
        key: the option that it was given by.
        fits: glob of the packaged names that fit there.

    Raises:
        ConfigError: neither exists; the message lists the packaged names that fit.
    """
    for path in (Path(name).expanduser(), PACKAGED / name):
        if path.is_file():
            return path
    names = [packaged for packaged in packaged_configs() if fnmatch(packaged, fits)]
    near = get_close_matches(name, names, 1, 0.75)
    fix = f"did you mean {near[0]}?" if near else f"give a file or one of {', '.join(names)}"
    raise ConfigError(f"{name} does not exist; {fix}", key)


def read_config(path: Path, key: str = "--config", example: str = "3b/sft.yaml") -> dict[str, Any]:
    """A YAML mapping.

    Args:
        path: the file.
        key: the option that it was given by.
        example: a packaged one of its kind, for the message.

    Raises:
        ConfigError: no YAML, no mapping, a key that is no text, or one that stands twice (YAML itself would keep the
            last, in silence).
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except KeyRefused as error:
        raise ConfigError(error.told(f" in {path}"), error.key) from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is no YAML: {_where(error)}; correct it", key) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {content!r:.40}, not keys and values; see {example}", key)
    return content


def parse_yaml(text: str) -> Any:
    """YAML as jsonargparse reads it: ``1e-3`` is a number.

    Raises:
        KeyRefused: a key that is no text, or that stands twice.
        yaml.YAMLError: no YAML, a list or mapping that holds itself, or a value that its type cannot be.
    """
    return yaml.load(text, _StrictLoader)


def _where(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


class KeyRefused(Exception):
    """A key that a mapping may not have."""

    def __init__(self, key: str, what: str, lines: str) -> None:
        super().__init__(key, what, lines)
        self.key, self.what, self.lines = key, what, lines

    def told(self, place: str = "") -> str:
        """What is wrong, where, and the fix."""
        return f"{self.what}{place}, {self.lines}"


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys, keys that are no texts, and what holds itself."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.deep_construct = True  # inner nodes first: an outer one could be merged, and then seem to say them twice

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                name, fix = (key, f"write {key!r}") if isinstance(key, str) else ("?", "write a name")
                raise KeyRefused(name or "?", "is no text, and so no key", f"line {line}; {fix}")
            if key in lines and key != "<<":
                raise KeyRefused(key, "stands twice", f"lines {lines[key]} and {line}; delete one")
            lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # 2020-13-45, !!int x, !!bool x
            problem = f"{node.value!r:.40} is no {node.tag.rpartition(':')[2]} ({error})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+(?:[eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)
