"""Low-rank adapters on a decoder: a few parameters train, and without them the model is what it was.

The adapters are those of peft (extra ``adapters``). A policy that trains nothing else needs no copy of itself as its
reference: :func:`switched_off` is the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bluelm_lightning.errors import ConfigError

_BASE = ".base_layer."


@dataclass(frozen=True)
class LowRank:
    """Adapters of low rank on linear layers (LoRA, Hu et al. 2021).

    Args:
        rank: inner width.
        alpha: the update is scaled by ``alpha / rank``.
        targets: last part of the names of the layers that get one.

    Raises:
        ConfigError: a rank below 1, or no target.
    """

    rank: int = 16
    alpha: int = 32
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ConfigError(f"rank={self.rank}, targets={self.targets}; give rank >= 1 and a target", "adapters")

    def put(self, model: nn.Module) -> None:
        """Into ``model``, in place; its other parameters no longer train.

        Raises:
            ConfigError: peft is not installed, or a target names no layer of the model.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ConfigError("adapters need peft; pip install 'bluelm-lightning[adapters]'", "adapters") from error
        names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        for target in self.targets:
            if target not in names:
                raise ConfigError(f"{target!r} is no linear layer; there are {', '.join(sorted(names))}", "adapters")
        inject_adapter_in_model(
            LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets), lora_dropout=0.0), model
        )


def layers_of(module: nn.Module) -> list[Any]:
    """The layers of ``module`` that carry an adapter."""
    return [part for part in module.modules() if hasattr(part, "base_layer") and hasattr(part, "lora_A")]


def only_adapters_train(module: nn.Module) -> bool:
    """Whether the module has adapters and everything else in it is frozen."""
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return bool(trained) and all(".lora_" in name for name in trained)


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """The module as it was without its adapters."""
    layers = layers_of(module)
    trained = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in trained:  # switching off also freezes
            parameter.requires_grad_(True)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights with the adapters' updates in them, under the names of the model without adapters, which stays as it is.

    Raises:
        ConfigError: as :func:`absorb`.
    """
    _refuse_shared(model)
    kept = {key: value for key, value in model.state_dict().items() if ".lora_" not in key}
    state = {key.replace(_BASE, "."): value.detach().clone() for key, value in kept.items()}
    for name, layer in _named_layers(model):
        weight = state[f"{name}.weight"]
        for adapter in layer.active_adapters:
            weight += layer.get_delta_weight(adapter).to(weight.dtype)
    return state


def absorb(model: nn.Module) -> None:
    """The adapters' updates become part of the weights, in place: ``model`` is one without adapters afterwards.

    Raises:
        ConfigError: an adapter is on a layer whose weight another layer shares, which would change with it.
    """
    _refuse_shared(model)
    for name, layer in list(_named_layers(model)):
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


def _named_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    carrying = {id(layer) for layer in layers_of(model)}
    return ((name, part) for name, part in model.named_modules() if id(part) in carrying)


def _refuse_shared(model: nn.Module) -> None:
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, layer in _named_layers(model):
        if uses[id(layer.base_layer.weight)] > 1:
            fix = "untie the embeddings, or train without this target"
            raise ConfigError(f"the weight of {name} is shared, its adapter is not; {fix}", "adapters")


def adopt_plain(own: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model without adapters, under the names of one with them; the adapters keep their own."""
    if not any(_BASE in key for key in own) or any(_BASE in key for key in state):
        return state
    renamed = {key.replace(_BASE, "."): key for key in own if _BASE in key}
    fresh = {key: value for key, value in own.items() if ".lora_" in key}
    return {renamed.get(key, key): value for key, value in state.items()} | fresh
