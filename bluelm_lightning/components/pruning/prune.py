"""Cutting a decoder to a plan: the result is an ordinary model of transformers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bluelm_lightning.components.attention import register_attention
from bluelm_lightning.components.pruning.importance import Importance, blocks_of
from bluelm_lightning.components.pruning.plan import PruningPlan, head_dim
from bluelm_lightning.errors import ConfigError


@dataclass
class PruningReport:
    """What stayed and what went.

    Args:
        parameters: before and after.
        layers: numbers of the layers that stayed, in order.
        channels: of the states that stayed.
        groups: for each layer that stayed, its groups that stayed.
        neurons: for each layer that stayed, how much of the MLP's importance stayed, 0 to 1.
    """

    parameters: tuple[int, int]
    layers: list[int]
    channels: list[int]
    groups: list[list[int]]
    neurons: list[float]

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"{before:,} -> {after:,} parameters ({after / before:.1%})"]
        lines.append(f"layers {', '.join(map(str, self.layers))}; {len(self.channels)} channels")
        for layer, groups, share in zip(self.layers, self.groups, self.neurons):
            lines.append(f"  layer {layer}: groups {', '.join(map(str, groups))}; {share:.1%} of the MLP's activity")
        return "\n".join(lines)


@torch.no_grad()
def prune(model: Any, plan: PruningPlan, importance: Importance) -> tuple[nn.Module, PruningReport]:
    """A smaller model with the most important parts of ``model``, which stays as it is.

    Channels are cut alike everywhere (the residual stream joins all layers); heads and neurons layer by layer.

    Args:
        model: Llama-like causal model of transformers.
        plan: sizes to reach.
        importance: of that model.

    Raises:
        ConfigError: a size that does not fit, or a model of another build.
    """
    sizes, config = plan.sizes(model.config), model.config
    blocks_of(model)  # raises for another build
    layers = _top(importance.layers, sizes["num_hidden_layers"])
    channels = _top(importance.channels, sizes["hidden_size"])
    groups = [_top(importance.groups[n], sizes["num_key_value_heads"]) for n in layers.tolist()]
    neurons = [_top(importance.neurons[n], sizes["intermediate_size"]) for n in layers.tolist()]
    small = _build(config, sizes, layers.tolist())
    state = model.state_dict()
    new = {}
    for name in small.state_dict():
        number, source = _source(name, layers)
        tensor = state[source]
        if number >= 0:
            tensor = _cut_inside(name, tensor, config, groups[number], neurons[number])
        new[name] = _cut_channels(name, tensor, channels)
    for name, wanted in small.state_dict().items():
        if new[name].shape != wanted.shape:
            whose = f"{name} of {type(model).__name__}"
            raise ConfigError(f"{whose} is not built as in Llama or Qwen; it cannot be pruned", "pruning")
    small.load_state_dict(new)
    small.train(model.training)
    shares = [_share(importance.neurons[n], kept) for n, kept in zip(layers.tolist(), neurons)]
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (model, small))
    report = PruningReport(counts, layers.tolist(), channels.tolist(), [g.tolist() for g in groups], shares)  # type: ignore[arg-type]
    return small, report


def _build(config: Any, sizes: dict[str, int], kept: list[int]) -> Any:
    from transformers import AutoModelForCausalLM

    new = copy.deepcopy(config)
    share = config.num_attention_heads // config.num_key_value_heads
    new.head_dim = head_dim(config)  # no longer width / heads
    for key, value in {**sizes, "num_attention_heads": share * sizes["num_key_value_heads"]}.items():
        setattr(new, key, value)
    for key in ("layer_types", "no_rope_layers"):  # lists with an entry a layer
        if getattr(config, key, None):
            setattr(new, key, [getattr(config, key)[n] for n in kept])
    kinds = getattr(new, "layer_types", None)
    if kinds and hasattr(config, "max_window_layers"):  # Qwen: what readers without layer_types go by
        new.max_window_layers = [*kinds, "sliding_attention"].index("sliding_attention")
    return AutoModelForCausalLM.from_config(new, attn_implementation=register_attention())


def _source(name: str, layers: Tensor) -> tuple[int, str]:
    """Place among the layers that stayed (-1: none) and the tensor's name in the whole model."""
    parts = name.split(".")
    if "layers" not in parts:
        return -1, name
    place = parts.index("layers") + 1
    number = int(parts[place])
    parts[place] = str(int(layers[number]))
    return number, ".".join(parts)


def _cut_inside(name: str, tensor: Tensor, config: Any, groups: Tensor, neurons: Tensor) -> Tensor:
    """Heads and neurons of one layer."""
    share = config.num_attention_heads // config.num_key_value_heads
    rows = {"q_proj": share, "k_proj": 1, "v_proj": 1}
    part = name.split(".")[-2]
    if part in rows:
        return _take_groups(tensor, groups, rows[part] * head_dim(config), 0)
    if part == "o_proj":
        return _take_groups(tensor, groups, share * head_dim(config), 1) if tensor.ndim > 1 else tensor
    if part in ("gate_proj", "up_proj"):
        return tensor[neurons]
    if part == "down_proj":
        return tensor[:, neurons] if tensor.ndim > 1 else tensor
    return tensor


def _take_groups(tensor: Tensor, groups: Tensor, size: int, dim: int) -> Tensor:
    places = (groups[:, None] * size + torch.arange(size)[None]).flatten()
    return tensor.index_select(dim, places.to(tensor.device))


def _cut_channels(name: str, tensor: Tensor, channels: Tensor) -> Tensor:
    """The residual stream: inputs of what reads it, outputs of what writes it."""
    part = name.split(".")[-2]
    if "self_attn" in name and part.endswith("norm"):  # of queries and keys, inside a head
        return tensor
    if part in ("o_proj", "down_proj") or part.endswith("norm"):
        return tensor[channels]
    return tensor[:, channels] if tensor.ndim > 1 else tensor


def _top(scores: Tensor, count: int) -> Tensor:
    """Places of the ``count`` greatest, in order; of equals the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _share(scores: Tensor, kept: Tensor) -> float:
    return float(scores[kept].sum() / scores.sum().clamp_min(1e-12))
