"""Weights in: files read without unpickling code, and stages' checkpoints by component prefix, strictly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluelm_lightning.components.adapters import adopt_plain
from bluelm_lightning.errors import ConfigError


@dataclass
class Loaded:
    """What was loaded into one component."""

    component: str
    tensors: int
    parameters: int  # tied ones counted once
    source: str


def read_state_dict(path: str | Path, key: str | None = "init_from") -> dict[str, Tensor]:
    """Tensors of a Lightning checkpoint, a torch file or a safetensors file. Never unpickles code.

    Raises:
        ConfigError: the file is missing or is not one of these.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give a .ckpt, .safetensors or torch weights file", key)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as read
    else:
        read = partial(torch.load, map_location="cpu", weights_only=True, mmap=True)
    try:
        content: Any = read(path)
    except Exception as error:
        raise ConfigError(f"{path} is not a readable weights file: {_first_line(error)}", key) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"{path} holds no dictionary of tensors; give a checkpoint or a state dict", key)
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def init_from(model: nn.Module, path: str | Path, components: list[str] | None = None) -> list[Loaded]:
    """Copy the weights of each component (a direct child such as ``vision``) from a checkpoint, strictly.

    Keys may carry any outer prefix: ``vlm.vision.model.norm.weight`` loads into ``vision``.

    Args:
        model: a module whose children are components.
        path: checkpoint to read.
        components: children to load; default: all that the model has.

    Raises:
        ConfigError: a component or tensor is missing, left over, or has another shape.
    """
    children = dict(model.named_children())
    held = _by_component(read_state_dict(path), children)
    report = []
    for name in components or list(children):
        if name not in children:
            raise ConfigError(f"no component {name!r}; this model has {', '.join(children)}", "init_from")
        found = held.get(name)
        if not found:
            have = ", ".join(sorted(held)) or "none of this model's"
            raise ConfigError(f"{path} holds nothing for component {name!r}; its components: {have}", "init_from")
        load_strict(children[name], found, f"{path}, component {name!r}")
        report.append(Loaded(name, len(found), _num_values(children[name], found), str(path)))
    return report


def _num_values(module: nn.Module, state: dict[str, Tensor]) -> int:
    """Values of what was loaded; a tied tensor counts once, also where the file holds it under each of its names."""
    tied: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    again = {name for names in tied.values() for name in [name for name in names if name in state][1:]}
    return sum(tensor.numel() for name, tensor in state.items() if name not in again)


def _by_component(state: dict[str, Tensor], components: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The outermost name of a component owns the key: ``vlm.vision.model.decoder.bias`` is ``vision``'s.

    Raises ConfigError: a component stands under several prefixes, none of which is ``vlm``.
    """
    names = set(components)
    held: dict[str, dict[str, dict[str, Tensor]]] = {}  # component -> prefix -> tensors
    for key, tensor in state.items():
        parts = key.split(".")
        owner = next((i for i, part in enumerate(parts[:-1]) if part in names), None)
        if owner is not None:
            prefix, rest = ".".join(parts[:owner]), ".".join(parts[owner + 1 :])
            held.setdefault(parts[owner], {}).setdefault(prefix, {})[rest] = tensor
    out = {}
    for name, found in held.items():
        if len(found) > 1 and "vlm" not in found:  # a reference or a writer holds the same component once more
            raise ConfigError(f"{name} stands under {', '.join(sorted(found))}; keep one of them", "init_from")
        out[name] = found["vlm"] if "vlm" in found else next(iter(found.values()))
    return out


def _fill_tied(own: dict[str, Tensor], state: dict[str, Tensor], where: str, key: str | None) -> dict[str, Tensor]:
    """Names that the model ties: a file may hold one of them (safetensors) or all of them, if they are equal."""
    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(tensor.data_ptr() or id(tensor), []).append(name)
    state = dict(state)
    for names in tied.values():
        given = [name for name in names if name in state]
        for name in given[1:]:
            if not torch.equal(state[name], state[given[0]]):
                fix = "set tie_embeddings: false"
                raise ConfigError(f"{where}: {given[0]} and {name} differ, but the model ties them; {fix}", key)
        state.update({name: state[given[0]] for name in names if given})
    return state


def load_strict(module: nn.Module, state: dict[str, Tensor], where: str, key: str | None = "init_from") -> None:
    """Raises ConfigError naming what is missing, left over or of another shape."""
    own = module.state_dict()
    state = adopt_plain(own, state)
    state = _fill_tied(own, state, where, key)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or shapes:
        parts = [
            f"{label}: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
            for label, keys in (("missing", missing), ("left over", extra))
            if keys
        ]
        parts += [f"{k} has shape {tuple(state[k].shape)}, the model wants {tuple(own[k].shape)}" for k in shapes[:3]]
        fix = "use the configuration it was trained with"
        raise ConfigError(f"{where} does not fit: {'; '.join(parts)}; {fix}", key)
    module.load_state_dict(state)
