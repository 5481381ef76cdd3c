"""Optimizer groups by strict globs over parameter names, with layer-wise learning rates in the vision tower."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from bluelm_lightning.errors import ConfigError


@dataclass
class ParameterGroup:
    """Settings of the parameters that a glob matches.

    Args:
        match: glob over parameter names, such as ``vlm.vision.*``. One that matches nothing is an error.
        lr: learning rate; default: the optimizer's.
        weight_decay: default: the optimizer's.
        layer_decay: learning rate falls by this factor with every layer towards the input (vision tower only).
    """

    match: str
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None


_NUMBERS = ("lr", "weight_decay", "layer_decay")


class AdamW:
    """AdamW over named parameters. Norms, biases and other vectors carry no weight decay.

    Args:
        lr: peak learning rate.
        betas: decay of the two moments. Source of the defaults: BlueLM-V-3B (0.9, 0.98; eps 1e-6; weight decay 0.05).
        eps: added to the denominator.
        weight_decay: for matrices.
        groups: exceptions; the first glob that matches a parameter wins.
        fused: one kernel for all parameters where the device has it.
    """

    def __init__(
        self,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.05,
        groups: list[ParameterGroup] | None = None,
        fused: bool = True,
    ) -> None:
        self.groups = groups or []
        of_groups = [(f"groups[{g.match}].{key}", getattr(g, key)) for g in self.groups for key in _NUMBERS]
        for key, value in [("lr", lr), ("weight_decay", weight_decay), *of_groups]:
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{value} is not a number >= 0", f"model.optimizer.{key}")
        self.lr, self.betas, self.eps, self.weight_decay, self.fused = lr, betas, eps, weight_decay, fused

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the parameters of ``module`` that require gradients; groups of equal settings are merged.

        Raises:
            ConfigError: nothing is trainable, or a glob matches no parameter of the module.
        """
        named = list(module.named_parameters())
        check_globs([g.match for g in self.groups], [name for name, _ in named], "model.optimizer.groups")
        merged: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in named:
            if parameter.requires_grad:
                entry = merged.setdefault(self._settings(module, name, parameter), [])
                entry.append(parameter)
        if not merged:
            raise ConfigError("no parameter is trainable; shorten the list", "model.frozen")
        groups = [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in merged.items()]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused)

    def _settings(self, module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        group = next((g for g in self.groups if fnmatchcase(name, g.match)), ParameterGroup("*"))
        lr = self.lr if group.lr is None else group.lr
        decay = self.weight_decay if group.weight_decay is None else group.weight_decay
        if group.layer_decay is not None:
            depth, deepest = _depth(module, name)
            lr *= group.layer_decay ** (deepest - depth)
        return lr, decay if parameter.ndim > 1 else 0.0


def _depth(module: nn.Module, name: str) -> tuple[int, int]:
    """Ask the component that owns the parameter for its depth."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        owner = module.get_submodule(".".join(parts[:i]))
        if hasattr(owner, "depth_of"):
            return owner.depth_of(".".join(parts[i:]))  # type: ignore[operator]
    raise ConfigError(f"layer_decay is set but {name} belongs to no component with layers", "model.optimizer.groups")


def check_globs(globs: Iterable[str], names: list[str], key: str) -> None:
    """Raises ConfigError for the first glob that matches no name, with the nearest top-level names."""
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(f"{glob!r} matches no parameter; names begin with {', '.join(tops)}", key)
