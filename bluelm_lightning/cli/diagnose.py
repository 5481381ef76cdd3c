"""Which key is wrong, and what would be right: one line instead of jsonargparse's fifty.

Runs only where something is wrong already, or where a class was replaced, so it can refuse nothing that is valid.
"""

from __future__ import annotations

import re
from typing import Any

from bluelm_lightning.cli.arguments import Argument
from bluelm_lightning.cli.classes import find_class, parameters
from bluelm_lightning.cli.layers import COMMAND_LINE, Layers
from bluelm_lightning.cli.specs import list_on_the_way, read_value
from bluelm_lightning.cli.walk import classes_of, walk, walk_item
from bluelm_lightning.errors import ConfigError, near_or_known


def explain(layers: Layers, hints: dict[str, Any], message: str) -> ConfigError:
    """The error that stands behind jsonargparse's ``message``.

    Args:
        layers: what the user wrote.
        hints: type of each top-level key.
        message: what jsonargparse said; its innermost part is used where `find_mistake` finds nothing.
    """
    return find_mistake(layers, hints) or ConfigError(innermost(message))


def find_mistake(layers: Layers, hints: dict[str, Any]) -> ConfigError | None:
    """The first thing wrong in what the user wrote, with the file that says it; None: nothing is seen."""
    try:
        for key, value in layers.values.items():
            if key not in hints:
                raise ConfigError(f"unknown key{near_or_known(key, hints)}", key)
            walk(value, hints[key], key)
        for key in ("model", "data"):
            if key not in layers.values:
                raise ConfigError("is missing; give it in a --config file, such as 3b/sft.yaml", key)
        for argument in layers.inside_lists:
            _walk_inside(argument, layers.values, hints)
    except ConfigError as error:
        return with_origin(error, layers)
    return None


def check_changes(layers: Layers, hints: dict[str, Any]) -> None:
    """Raises ConfigError where a replaced class had arguments that the new one does not take: they would be lost."""
    for change in layers.changes:
        base = _base_at(change.key, layers.values, hints)
        if base is None:
            continue
        old, new = (find_class(name, base, change.key) for name in (change.old, change.new))
        lost = [name for name in change.inherited if name not in parameters(new)]
        if old is not new and lost:
            named = ", ".join(f"{name} ({layers.origin(f'{change.key}.{name}')})" for name in lost)
            raise ConfigError(
                f"{change.new} takes no {named}, which {change.old} had: it would be dropped in silence; "
                f"remove it there, or say --{change.key}.{lost[0]}=null before the change",
                change.key,
            )


def with_origin(error: ConfigError, layers: Layers) -> ConfigError:
    """The error with the file that gave its key, where one did."""
    origin = layers.origin((error.key or "").removeprefix("--"))
    return error if not origin or origin == COMMAND_LINE else ConfigError(f"{error} (in {origin})")


def _walk_inside(argument: Argument, values: dict[str, Any], hints: dict[str, Any]) -> None:
    parts = argument.dotted.split(".")
    found = list_on_the_way(values, parts)
    if found is not None:
        count, items = found
        key, value = ".".join(parts[:count]), read_value(str(argument.text), argument.key)
        walk_item(items, _hint_at(key, values, hints), key, parts[count:], value)


def _base_at(key: str, values: Any, hints: dict[str, Any]) -> type | None:
    """The class wanted at a dotted key."""
    return next(iter(classes_of(_hint_at(key, values, hints))), None)


def _hint_at(key: str, values: Any, hints: dict[str, Any]) -> Any:
    """The type wanted at a dotted key."""
    hint: Any = None
    for part in key.split("."):
        found = classes_of(hint)
        if isinstance(hint, dict):
            hints = hint
        elif found and isinstance(values, dict):
            klass = find_class(values.get("class_path", found[0].__name__), found[0], key)
            hints = {name: parameter.annotation for name, parameter in parameters(klass).items()}
            values = values.get("init_args") or {}
        hint, values = hints.get(part), values.get(part) if isinstance(values, dict) else None
    return hint


def innermost(message: str) -> str:
    """What jsonargparse complains about, without what it says around it, in one line."""
    noise = r"Does not validate|Subtypes:|Errors:|Given value|- Expected a <class 'NoneType'>"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip() and not re.search(noise, line)]
    text = re.sub(r'Parser key "([^"]+)":;', r"\1:", "; ".join(lines))
    return re.sub(r"\s+", " ", text)[:300]
