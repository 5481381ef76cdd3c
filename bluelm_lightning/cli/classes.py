"""Classes by the names that a YAML gives them, and the arguments they take."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from bluelm_lightning.errors import ConfigError

# Nothing a configuration needs lives here, and instantiating it could run commands or code.
FORBIDDEN_MODULES = {
    *("asyncio", "builtins", "code", "codeop", "ctypes", "importlib", "marshal", "multiprocessing", "nt", "os", "pdb"),
    *("pickle", "posix", "pty", "runpy", "shelve", "shutil", "signal", "socket", "subprocess", "sys", "webbrowser"),
}
_OUR_ROOMS = ("components", "stages", "datamodules", "callbacks")


def check_module(class_path: str, key: str) -> None:
    """Raises ConfigError for a class of a module that runs commands, opens sockets, or reads pickles."""
    module = class_path.split(".")[0]
    if "." in class_path and module in FORBIDDEN_MODULES:
        raise ConfigError(f"{class_path} is refused: a configuration may not reach {module}; remove it", key)


def subclasses(base: type) -> Iterator[type]:
    """``base`` and everything imported that derives from it."""
    yield base
    children: list[type] = type.__subclasses__(base)
    for child in children:
        yield from subclasses(child)


def find_class(name: str, base: type, key: str) -> type:
    """The class that ``name`` means where a ``base`` is wanted: a dotted path, or the bare name of a known class.

    Raises:
        ConfigError: nothing of that name, an import that fails, or a class of another family.
    """
    check_module(name, key)
    known = {klass.__name__: klass for klass in subclasses(base)}
    found = _imported(name, key) if "." in name else known.get(name) or _ours(name)
    if found is None:
        raise ConfigError(f"there is no {base.__name__} called {name!r}; {_suggest(name, base, list(known))}", key)
    is_protocol = getattr(base, "_is_protocol", False)
    if not isinstance(found, type) or not (is_protocol or issubclass(found, base)):
        raise ConfigError(f"{name} is {_family(found)}, not {_article(base)}; {_suggest('', base, list(known))}", key)
    return found


def _imported(name: str, key: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"cannot import {name}: {error}; install its package, or correct class_path", key) from error


def _ours(name: str) -> Any:
    rooms = [sys.modules.get(f"bluelm_lightning.{room}") for room in _OUR_ROOMS]
    return next((getattr(room, name) for room in rooms if hasattr(room, name)), None)


def _family(found: Any) -> str:
    """``a Projector`` for an MLPProjector: the highest base of ours that says something."""
    if not isinstance(found, type):
        return f"a {type(found).__name__}"
    ours = [base for base in found.__mro__ if base.__module__.startswith("bluelm_lightning.")]
    ours = [base for base in ours if base.__name__ != "Component"]
    return _article(ours[-1] if ours else found)


def _article(klass: type) -> str:
    return f"{'an' if klass.__name__[0] in 'AEIOU' else 'a'} {klass.__name__}"


def _suggest(name: str, base: type, known: list[str]) -> str:
    near = get_close_matches(name, known, 1, 0.6)
    if near:
        return f"did you mean {near[0]}?"
    choices = sorted(set(known) - {base.__name__}) or known
    return f"give one of {', '.join(choices[:8])}, or package.Class of your own"


@cache
def parameters(klass: type) -> dict[str, inspect.Parameter]:
    """Arguments of a class, types resolved, those behind ``**kwargs`` included."""
    found: dict[str, inspect.Parameter] = {}
    for base in klass.__mro__:
        init = vars(base).get("__init__")
        if not isinstance(init, types.FunctionType):
            continue
        own = list(inspect.signature(init).parameters.values())[1:]
        try:
            hints = typing.get_type_hints(init)
        except (NameError, TypeError):  # names that exist for type checkers only
            hints = {}
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter.replace(annotation=hints.get(parameter.name, Any)))
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in own):
            break
    return found
