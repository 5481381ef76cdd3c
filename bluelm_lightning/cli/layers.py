"""What the user wrote, file over file and override over file, and where each key comes from.

jsonargparse merges for itself; this second, plain view is there to say *which key of which file* is wrong, and to see
what jsonargparse drops in silence. A class is a mapping with ``class_path`` and ``init_args``; dotted keys leave
``init_args`` out, as on the command line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from bluelm_lightning.cli.arguments import SWITCHES, Argument
from bluelm_lightning.cli.config_files import find_config, read_config
from bluelm_lightning.cli.specs import SPEC_KEYS, as_spec, is_spec, nest, read_value

COMMAND_LINE = "the command line"


class Change(NamedTuple):
    """A later layer names another class while arguments of the first one are still there."""

    key: str  # "model.vlm.projector"
    old: str  # class names as written
    new: str
    inherited: dict[str, Any]  # arguments that only the earlier layers gave


class Layers:
    """The merged settings.

    Attributes:
        values: one tree of everything written.
        origins: dotted key -> the file that gave it, or "the command line".
        changes: classes that a later layer replaced.
        inside_lists: overrides of something inside a list, which only jsonargparse may be able to follow.
        tokens: the same for jsonargparse: config names found, shorthands written out.
    """

    def __init__(self, arguments: Sequence[Argument]) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.changes: list[Change] = []
        self.inside_lists: list[Argument] = []
        self.tokens: list[str] = []
        self.configs: list[str] = []
        self._replaced_lists: list[str] = []
        for argument in arguments:
            if argument.key == "config":
                self._add_file(str(argument.text))
            else:
                self._add_override(argument)

    def origin(self, key: str) -> str:
        """Who gave this key, or the nearest key above it, or all keys of its group."""
        group = key.partition(".")[0]
        while key and key not in self.origins:  # data.sources[0].path, data.sources[0], data.sources, ...
            key = key.rpartition("[" if key.endswith("]") else ".")[0]
        below = {layer for name, layer in self.origins.items() if name.startswith(f"{group}.")}
        return self.origins[key] if key else below.pop() if len(below) == 1 else ""

    def _add_file(self, name: str) -> None:
        path = find_config(name)
        self.configs.append(name)
        self._merge_into(read_config(path), name)
        self._add_tokens(f"--config={path}")

    def _add_override(self, argument: Argument) -> None:
        if argument.key == "summary":
            argument = Argument("summary", argument.text or "true")
        if argument.key in SWITCHES - {"summary"} or argument.key.endswith(".help"):
            self.tokens.append("--help" if argument.key == "help_keys" else argument.token)
            return
        value = read_value(str(argument.text), argument.key)
        if argument.key == "init_from":
            return self._add_init_from([] if value is None else value if isinstance(value, list) else [argument.text])
        nested = nest(self.values, argument.parts, value, argument.key.endswith("+"))
        # jsonargparse takes null inside a class in a config only
        in_config = value is None and nested is not None and argument.parts[0] in ("model", "data")
        if nested is not None:
            self._merge_into(nested, COMMAND_LINE)
        else:
            self.inside_lists.append(argument)
            self.origins[argument.dotted] = COMMAND_LINE
        self._add_tokens(f"--config={json.dumps(nested)}" if in_config else argument.token)

    def _add_tokens(self, token: str) -> None:
        """Lists first: jsonargparse would fill a list's items from the items of an earlier list of the same length."""
        for key in self._replaced_lists:
            self.tokens.append(f"--config={json.dumps(nest(self.values, key.split('.'), None, False))}")
        self._replaced_lists.clear()
        self.tokens.append(token)

    def _add_init_from(self, paths: list[Any]) -> None:
        """Repeated on the command line it adds up; what a file says is replaced, by nothing with null."""
        before = self.values["init_from"] if self.origins.get("init_from") == COMMAND_LINE else []
        self._merge_into({"init_from": [*before, *paths]}, COMMAND_LINE)
        self.tokens.append(f"--init_from={json.dumps(self.values['init_from'])}")

    def _merge_into(self, content: dict[str, Any], layer: str) -> None:
        for key, value in content.items():
            name = key.removesuffix("+")
            self.values[name] = self._merge(self.values.get(name), value, name, layer, key.endswith("+"))

    def _merge(self, old: Any, new: Any, key: str, layer: str, append: bool = False) -> Any:
        old, new = as_spec(old, new), as_spec(new, old)
        if append and isinstance(old, list):
            return old + (new if isinstance(new, list) else [new])
        if isinstance(old, list) and any(isinstance(item, dict) for item in old) and new is not None:
            self._replaced_lists.append(key)
        if not isinstance(new, dict) or not (is_spec(new) or key.count(".") == 0):
            self.origins[key] = layer
            return new
        if "class_path" in new:
            self.origins[key] = layer
        old = dict(old) if isinstance(old, dict) else {}
        if old.get("class_path") and new.get("class_path") not in (None, old["class_path"]):
            old = self._change(old, new, key)
        for name, value in new.items():
            if name == "init_args" and isinstance(value, dict):
                old[name] = self._merge_arguments(old.get(name), value, key, layer)
            else:
                inner = key if name in SPEC_KEYS else f"{key}.{name}"
                plain = name.removesuffix("+")
                old[plain] = self._merge(old.get(plain), value, inner.removesuffix("+"), layer, name.endswith("+"))
        return old

    def _merge_arguments(self, old: Any, new: dict[str, Any], key: str, layer: str) -> dict[str, Any]:
        old = dict(old) if isinstance(old, dict) else {}
        return old | {name: self._merge(old.get(name), value, f"{key}.{name}", layer) for name, value in new.items()}

    def _change(self, old: dict[str, Any], new: dict[str, Any], key: str) -> dict[str, Any]:
        """Null is no argument: dropping it loses nothing."""
        given = {name: value for name, value in (old.get("init_args") or {}).items() if value is not None}
        replaced = set(new.get("init_args") or {})
        inherited = {name: value for name, value in given.items() if name not in replaced}
        self.changes.append(Change(key, str(old["class_path"]), str(new["class_path"]), inherited))
        return old | {"init_args": given}
