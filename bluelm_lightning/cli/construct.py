"""Constructors' own errors, which jsonargparse would bury, with the dotted key of the argument they complain about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bluelm_lightning.errors import ConfigError, DataError


class ConstructorError(BaseException):
    """Carries an exception out of jsonargparse, which would take an Exception for "not this type" and try the next."""

    def __init__(self, klass: type, error: Exception) -> None:
        self.klass, self.error = klass, error


def construct(klass: type, *args: Any, applied_instantiation_links: Any = None, **kwargs: Any) -> Any:
    """The plain way of making an object."""
    return klass(*args, **kwargs)


def guarded(construct: Any) -> Any:
    """An instantiator for jsonargparse whose exceptions get out."""

    def make(klass: type, *args: Any, applied_instantiation_links: Any = None, **kwargs: Any) -> Any:
        try:
            return construct(klass, *args, applied_instantiation_links=applied_instantiation_links or {}, **kwargs)
        except Exception as error:
            raise ConstructorError(klass, error) from error

    return make


def instantiate(parser: Any, config: Namespace, key: str, *named: type[Exception]) -> Any:
    """One top-level key of the settings, built. Raises what the constructor raised.

    Args:
        parser: jsonargparse's.
        config: the settings.
        key: what is built.
        named: errors raised as a ConfigError that names the class; as they are with ``BLUELM_DEBUG=1``.
    """
    try:
        return parser.instantiate_classes(Namespace({key: config[key]}))[key]
    except ConstructorError as stop:
        error = stop.error
        if isinstance(error, ConfigError) and error.key and "." not in error.key:
            text = str(error).removeprefix(f"{error.key}: ")
            raise ConfigError(text, locate(config[key], stop.klass, error.key, key)) from error
        if isinstance(error, named) and not os.environ.get("BLUELM_DEBUG"):
            where = place_of(config[key], stop.klass, key) or key
            raise ConfigError(f"{stop.klass.__name__}: {_told(error)}", where) from error
        raise error from None


def place_of(config: Any, klass: type, key: str) -> str:
    """Dotted key of the first object of a class: ``model.vlm.vision`` for ViTEncoder; empty: there is none."""
    if not isinstance(config, Namespace):
        return ""
    if str(config.get("class_path", "")).rpartition(".")[2] == klass.__name__:
        return key
    arguments = vars(config.get("init_args") or config)
    return next(filter(None, (place_of(value, klass, f"{key}.{name}") for name, value in arguments.items())), "")


def locate(config: Any, klass: type, argument: str, key: str) -> str:
    """Dotted key of a class's argument: ``model.vlm.vision.weights`` for ViTEncoder and ``weights``."""
    if not isinstance(config, Namespace):
        return argument
    arguments = config.get("init_args") or config
    if str(config.get("class_path", "")).rpartition(".")[2] == klass.__name__ and argument in arguments:
        return f"{key}.{argument}"
    found = (locate(value, klass, argument, f"{key}.{name}") for name, value in vars(arguments).items())
    return next((place for place in found if place != argument), argument)


@contextlib.contextmanager
def one_line(key: str, *more: type[Exception]) -> Iterator[None]:
    """A ValueError of a user's or a library's constructor as a ConfigError; as it is with ``BLUELM_DEBUG=1``.

    Args:
        key: what is built.
        more: other errors that mean wrong settings here.
    """
    told: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, MisconfigurationException, *more)
    try:
        yield
    except (ConfigError, DataError):
        raise
    except told as error:
        if os.environ.get("BLUELM_DEBUG"):
            raise
        raise ConfigError(_told(error), key) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}; BLUELM_DEBUG=1 shows where"
