"""Classes in a YAML: a mapping with ``class_path`` and ``init_args``, and dotted keys that leave ``init_args`` out."""

from __future__ import annotations

from typing import Any

import yaml

from bluelm_lightning.cli.config_files import KeyRefused, parse_yaml
from bluelm_lightning.errors import ConfigError

SPEC_KEYS = {"class_path", "init_args", "dict_kwargs"}


def is_spec(node: Any) -> bool:
    return isinstance(node, dict) and ("class_path" in node or "init_args" in node)


def as_spec(node: Any, other: Any) -> Any:
    """A class named by a string alone, where the other side shows that it is a class."""
    return {"class_path": node} if isinstance(node, str) and is_spec(other) else node


def read_value(text: str, key: str) -> Any:
    """What an override says. Raises ConfigError: it holds a mapping with a key that it may not have."""
    try:
        return parse_yaml(text)
    except KeyRefused as error:
        raise ConfigError(f"{error.key}: {error.told()}", f"--{key}") from None
    except yaml.YAMLError:
        return text


def list_on_the_way(node: Any, parts: list[str]) -> tuple[int, list[Any]] | None:
    """How many of ``parts``, without ``init_args``, lead to a list that the others lead into, and the list, if any."""
    for count, part in enumerate(parts):
        if isinstance(node, list):
            return count, node
        inside = (node.get("init_args") or {}) if is_spec(node) else node
        node = inside.get(part) if isinstance(inside, dict) else None
    return None


def nest(node: Any, parts: list[str], value: Any, append: bool, in_class: bool = False) -> dict[str, Any] | None:
    """``[data, batch_rows]`` -> ``{data: {init_args: {batch_rows: value}}}``; None inside a list.

    A mapping that is an argument, such as ``decoder.config``, is replaced as a whole, so it is returned as a whole.
    """
    head, rest = parts[0], parts[1:]
    spec = isinstance(node, str) or (is_spec(node) and head not in SPEC_KEYS)
    inside = (node.get("init_args") or {}) if spec and isinstance(node, dict) else node
    child = inside.get(head) if isinstance(inside, dict) else None
    if isinstance(child, list) and rest:
        return None
    inner = nest(child, rest, value, append, in_class or spec or head == "init_args") if rest else value
    if rest and inner is None:
        return None
    nested = {head + "+" * (append and not rest): inner}
    if spec:
        return {"init_args": nested}
    return {**inside, **nested} if in_class and isinstance(inside, dict) and not is_spec(inside) else nested
