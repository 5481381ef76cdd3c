"""Which key is wrong, and what would be right: one line instead of jsonargparse's fifty.

Runs only where something is wrong already, or where a class was replaced, so it can refuse nothing that is valid.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from difflib import get_close_matches
from typing import Any

from bluelm_lightning.cli.classes import find_class, parameters
from bluelm_lightning.cli.layers import COMMAND_LINE, Layers
from bluelm_lightning.errors import ConfigError

_PLAIN = (str, int, float, bool, bytes)


def explain(layers: Layers, hints: dict[str, Any], message: str) -> ConfigError:
    """The error that stands behind jsonargparse's ``message``.

    Args:
        layers: what the user wrote.
        hints: type of each top-level key.
        message: what jsonargparse said; its innermost part is used where the walk below finds nothing.
    """
    try:
        for key, value in layers.values.items():
            if key not in hints:
                raise ConfigError(f"unknown key{_near(key, hints)}", key)
            _walk(value, hints[key], key)
        for key in ("model", "data"):
            if key not in layers.values:
                raise ConfigError("is missing; give it in a --config file, such as 3b/sft.yaml", key)
    except ConfigError as error:
        return _with_origin(error, layers)
    return ConfigError(_innermost(message))


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


def _with_origin(error: ConfigError, layers: Layers) -> ConfigError:
    origin = layers.origin(error.key or "")
    return error if not origin or origin == COMMAND_LINE else ConfigError(f"{error} (in {origin})")


def _base_at(key: str, values: Any, hints: dict[str, Any]) -> type | None:
    """The class wanted at a dotted key."""
    hint: Any = None
    for part in key.split("."):
        found = _classes_of(hint)
        if hint is not None and found and isinstance(values, dict):
            klass = find_class(values["class_path"], found[0], key)
            hints = {name: parameter.annotation for name, parameter in parameters(klass).items()}
            values = values.get("init_args") or {}
        hint, values = hints.get(part), values.get(part) if isinstance(values, dict) else None
    return next(iter(_classes_of(hint)), None)


def _options(hint: Any) -> list[Any]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]


def _classes_of(hint: Any) -> list[type]:
    """The component-like classes that a type allows."""
    found = [option for option in _options(hint) if isinstance(option, type) and typing.get_origin(option) is None]
    return [k for k in found if k not in (*_PLAIN, type(None), dict, list, tuple, set) and k.__module__ != "builtins"]


def _walk(value: Any, hint: Any, key: str) -> None:
    """Raises ConfigError for the first thing wrong at or below ``key``."""
    options, classes = _options(hint), _classes_of(hint)
    if value is None:
        if type(None) not in options and Any not in options:
            raise ConfigError(f"is null; give {_spell(options)}", key)
        return
    listed = [option for option in options if typing.get_origin(option) in (list, tuple, set)]
    if isinstance(value, list) and listed:
        for index, item in enumerate(value):
            _walk(item, typing.get_args(listed[0])[0], f"{key}[{index}]")
    elif isinstance(value, dict) and isinstance(hint, dict):  # the trainer: a group of keys, not a class by name
        _walk_names(value, hint, key, "Trainer")
    elif classes and dataclasses.is_dataclass(classes[0]) and isinstance(value, dict):
        _walk_arguments(value, classes[0], key)
    elif classes and (isinstance(value, dict) or (isinstance(value, str) and str not in options)):
        _walk_spec(value, classes[0], key)
    elif not _fits(value, hint):
        raise ConfigError(f"{value!r:.60} is not {_spell(options)}; correct it", key)


def _walk_spec(value: dict[str, Any] | str, base: type, key: str) -> None:
    spec = {"class_path": value} if isinstance(value, str) else value
    for name in spec:
        if name not in ("class_path", "init_args", "dict_kwargs"):
            known = ("class_path", "init_args", *parameters(base))
            under = name in parameters(base) and "class_path" not in spec
            fix = "; a class is written with class_path and init_args" if under else _near(name, dict.fromkeys(known))
            raise ConfigError(f"unknown key{fix}", f"{key}.{name}")
    klass = find_class(str(spec.get("class_path", base.__name__)), base, key)
    _walk_arguments(spec.get("init_args") or {}, klass, key)


def _walk_arguments(given: dict[str, Any], klass: type, key: str) -> None:
    known = parameters(klass)
    _walk_names(given, {name: p.annotation for name, p in known.items()}, key, klass.__name__)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and given.get(name) is None:
            raise ConfigError(f"is missing; {klass.__name__} needs it", f"{key}.{name}")


def _walk_names(given: dict[str, Any], known: dict[str, Any], key: str, owner: str) -> None:
    for name, inner in given.items():
        if name not in known:
            raise ConfigError(f"unknown key of {owner}{_near(name, known)}", f"{key}.{name}")
        _walk(inner, known[name], f"{key}.{name}")


def _near(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(list(known)[:20])}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether jsonargparse would take the value; what it cannot tell counts as yes."""
    from jsonargparse import ArgumentError, ArgumentParser

    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--x", type=hint)
    except ValueError:
        return True
    try:
        parser.parse_object({"x": value})
    except ArgumentError:
        return False
    return True


def _spell(options: list[Any]) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    spelled = [text for option in options for text in ([names[option]] if option in names else _name(option))]
    return " or ".join(dict.fromkeys(spelled))


def _name(option: Any) -> list[str]:
    if typing.get_origin(option) is typing.Literal:
        return [str(value) for value in typing.get_args(option)]
    return [option.__name__ if isinstance(option, type) and not typing.get_args(option) else str(option)]


def _innermost(message: str) -> str:
    noise = r"Does not validate|Subtypes:|Errors:|Given value|- Expected a <class 'NoneType'>"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip() and not re.search(noise, line)]
    text = re.sub(r'Parser key "([^"]+)":;', r"\1:", "; ".join(lines))
    return re.sub(r"\s+", " ", text)[:300]
