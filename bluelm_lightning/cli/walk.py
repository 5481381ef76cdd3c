"""The walk over settings beside the types that they must have: the first thing wrong, with its dotted key."""

from __future__ import annotations

import dataclasses
import types
import typing
from difflib import get_close_matches
from typing import Any

from bluelm_lightning.cli.classes import find_class, parameters
from bluelm_lightning.cli.specs import SPEC_KEYS, is_spec
from bluelm_lightning.errors import ConfigError, near_or_known

_PLAIN = (str, int, float, bool, bytes)


def walk(value: Any, hint: Any, key: str) -> None:
    """Raises ConfigError for the first thing wrong at or below ``key``."""
    if isinstance(hint, dict):  # the trainer: a group of keys, not a class by name
        if not isinstance(value, dict):
            raise ConfigError(f"{_said(value)}; give keys and values, such as max_steps: 100", key)
        return _walk_names(value, hint, key, "Trainer")
    options, classes = _options(hint), classes_of(hint)
    if value is None:
        if type(None) not in options and Any not in options:
            raise ConfigError(f"is null; give {_spell(options)}", key)
        return
    listed = [option for option in options if typing.get_origin(option) in (list, tuple, set)]
    if isinstance(value, list) and listed:
        for index, item in enumerate(value):
            walk(item, typing.get_args(listed[0])[0], f"{key}[{index}]")
    elif isinstance(value, dict) and (inner := _values_of(options)):
        for name, item in value.items():
            walk(item, inner, f"{key}.{name}")
    elif classes and dataclasses.is_dataclass(classes[0]) and isinstance(value, dict):
        _walk_arguments(value, classes[0], key)
    elif classes and (_is_mapping(value, options) or (isinstance(value, str) and str not in options)):
        if listed and classes_of(typing.get_args(listed[0])[0]) and isinstance(value, dict) and not is_spec(value):
            name = next(iter(value), "class_path")
            if not get_close_matches(name, SPEC_KEYS, 1, 0.6):
                raise ConfigError(f"no class is named there yet; {whole_list(key)}", f"{key}.{name}")
        _walk_spec(value, classes[0], key)
    elif not _fits(value, hint):
        raise ConfigError(f"{value!r:.60} is not {_spell(options)}; correct it", key)


def walk_item(items: list[Any], hint: Any, key: str, rest: list[str], value: Any) -> None:
    """Raises ConfigError where ``--KEY.REST=VALUE`` leads into a list and is no argument of its last item."""
    option = next((one for one in _options(hint) if typing.get_origin(one) in (list, tuple, set)), None)
    bases = classes_of(typing.get_args(option)[0]) if option else []
    item = {"class_path": items[-1]} if items and isinstance(items[-1], str) else items[-1] if items else None
    if not bases or not isinstance(item, dict):
        raise ConfigError(whole_list(key), f"{key}.{'.'.join(rest)}")
    named = is_spec(item)
    klass = find_class(str(item.get("class_path", bases[0].__name__)), bases[0], key)
    known = parameters(klass)
    if rest[0] not in known:
        last = f"--{key}.KEY sets the last one, which is {klass.__name__}; " if named else ""
        raise ConfigError(last + whole_list(key), f"{key}.{'.'.join(rest)}")
    if len(rest) == 1:
        walk(value, known[rest[0]].annotation, f"{key}.{rest[0]}")


def whole_list(key: str) -> str:
    """What to do instead of setting an item of the list at ``key``."""
    return f"items of a list cannot be set one by one; give the whole list (--{key}='[...]'), or put it in a YAML"


def _values_of(options: list[Any]) -> Any:
    """The type of the values of a mapping from names to classes; None: no such mapping."""
    values = [typing.get_args(option)[1] for option in options if typing.get_origin(option) is dict]
    return next((value for value in values if value is not Any and classes_of(value)), None)


def _is_mapping(value: Any, options: list[Any]) -> bool:
    """A mapping that must be a class, because the type allows no plain one."""
    return isinstance(value, dict) and not any((typing.get_origin(option) or option) is dict for option in options)


def _walk_spec(value: dict[str, Any] | str, base: type, key: str) -> None:
    spec: dict[str, Any] = {"class_path": value} if isinstance(value, str) else value
    for name in spec:
        if name not in ("class_path", "init_args", "dict_kwargs"):
            belongs = name in parameters(base)
            fix = "; put it under init_args" if belongs else near_or_known(name, ["class_path", "init_args"])
            raise ConfigError(f"unknown key{fix}", f"{key}.{name}")
    for name in ("init_args", "dict_kwargs"):
        if not isinstance(spec.get(name, {}), dict | None):
            raise ConfigError(f"{_said(spec[name])}; write argument: value", f"{key}.{name}")
    klass = find_class(str(spec.get("class_path", base.__name__)), base, key)
    _walk_arguments(spec.get("init_args") or {}, klass, key)


def _said(value: Any) -> str:
    return "is empty" if value is None else f"{value!r:.60} is no mapping"


def _walk_arguments(given: dict[str, Any], klass: type, key: str) -> None:
    known = parameters(klass)
    _walk_names(given, {name: p.annotation for name, p in known.items()}, key, klass.__name__)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and given.get(name) is None:
            raise ConfigError(f"is missing; {klass.__name__} needs it", f"{key}.{name}")


def _walk_names(given: dict[str, Any], known: dict[str, Any], key: str, owner: str) -> None:
    for name, inner in given.items():
        if name not in known:
            raise ConfigError(f"unknown key of {owner}{near_or_known(name, known)}", f"{key}.{name}")
        walk(inner, known[name], f"{key}.{name}")


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


def _options(hint: Any) -> list[Any]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]


def classes_of(hint: Any) -> list[type]:
    """The component-like classes that a type allows."""
    found = [option for option in _options(hint) if isinstance(option, type) and typing.get_origin(option) is None]
    return [k for k in found if k not in (*_PLAIN, type(None), dict, list, tuple, set) and k.__module__ != "builtins"]
