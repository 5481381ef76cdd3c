"""A command's own YAML: one dataclass, checked with the walk that stages are checked with."""

from __future__ import annotations

from typing import Any, TypeVar

from bluelm_lightning.cli.checks import check_modules
from bluelm_lightning.cli.config_files import find_config, read_config
from bluelm_lightning.cli.construct import construct, guarded, instantiate
from bluelm_lightning.cli.diagnose import innermost
from bluelm_lightning.cli.walk import walk
from bluelm_lightning.errors import ConfigError

Settings = TypeVar("Settings")


def read_settings(klass: type[Settings], name: str, example: str = "") -> Settings:
    """Builds a dataclass out of a YAML file, the classes that it names included.

    Args:
        klass: its fields are the keys of the file.
        name: a file, or the name of a packaged one.
        example: the packaged one that messages name.

    Raises:
        ConfigError: no such file, or anything wrong in it, with its dotted key.
    """
    content = read_config(find_config(name, "CONFIG", example or "*"), "CONFIG", example or name)
    try:
        walk(content, klass, "")
        check_modules(content)
        return _build(klass, content)
    except ConfigError as error:
        key = (error.key or "").removeprefix(".")
        text = str(error).removeprefix(f"{error.key}: ")
        raise ConfigError(f"{text} (in {name})", key or None) from error


def _build(klass: type[Settings], content: dict[str, Any]) -> Settings:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(klass, "settings")
    parser.add_instantiator(guarded(construct), object, subclasses=True)
    try:
        config = parser.parse_object({"settings": content})
    except ArgumentError as error:
        raise ConfigError(innermost(str(error))) from error
    return instantiate(parser, config, "settings")
