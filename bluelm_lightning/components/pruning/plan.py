"""What a pruned decoder looks like, given outright or found for a number of parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bluelm_lightning.components.pruning.importance import blocks_of
from bluelm_lightning.errors import ConfigError

_SIZES = ("num_hidden_layers", "hidden_size", "num_key_value_heads", "intermediate_size")


@dataclass(frozen=True)
class PruningPlan:
    """Sizes after pruning; None keeps the model's own.

    Args:
        num_hidden_layers: layers that stay.
        hidden_size: width of the states.
        num_key_value_heads: groups of heads that stay in each layer, with all their query heads.
        intermediate_size: neurons of each MLP.
    """

    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None

    def sizes(self, config: Any) -> dict[str, int]:
        """The four sizes.

        Raises ConfigError: one is below 1 or above the model's, or the heads do not divide the width.
        """
        out = {}
        for name in _SIZES:
            had = int(getattr(config, name))
            wanted = getattr(self, name)
            if wanted is not None and not 1 <= wanted <= had:
                raise ConfigError(f"{wanted} is not between 1 and the model's {had}", f"pruning.{name}")
            out[name] = had if wanted is None else int(wanted)
        heads = out["num_key_value_heads"] * (config.num_attention_heads // config.num_key_value_heads)
        if out["hidden_size"] % heads:  # transformers refuses such a Llama, whatever its head_dim
            raise ConfigError(
                f"{heads} heads do not divide a width of {out['hidden_size']}; give a multiple of {heads}",
                "pruning.hidden_size",
            )
        return out


def count_parameters(config: Any, sizes: dict[str, int], tensors: frozenset[str] | None = None) -> int:
    """Parameters of a Llama-like model of these sizes.

    Args:
        config: of the whole model.
        sizes: as :meth:`PruningPlan.sizes`.
        tensors: what :func:`layer_tensors` says; give it where many sizes are counted.
    """
    held = layer_tensors(config) if tensors is None else tensors
    width, neurons, head = sizes["hidden_size"], sizes["intermediate_size"], head_dim(config)
    keys = sizes["num_key_value_heads"] * head
    queries = keys * (config.num_attention_heads // config.num_key_value_heads)
    shapes = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (neurons, width),
        "mlp.up_proj": (neurons, width),
        "mlp.down_proj": (width, neurons),
    }
    layer = 0
    for name in held:
        part, kind = name.rsplit(".", 1)
        if part in shapes:
            rows, columns = shapes[part]
            layer += rows if kind == "bias" else rows * columns
        else:  # norms: of queries and keys inside a head, else of the states
            layer += head if part.startswith("self_attn.") else width
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    last_norm = width if "input_layernorm.weight" in held else 0  # OLMo's norms have no weights
    return embeddings + sizes["num_hidden_layers"] * layer + last_norm


def layer_tensors(config: Any) -> frozenset[str]:
    """Names of a layer's tensors, ``self_attn.q_proj.bias``: architectures differ in biases and in norms."""
    from transformers import AutoModelForCausalLM

    one = copy.deepcopy(config)
    one.num_hidden_layers = 1
    if getattr(one, "layer_types", None):
        one.layer_types = one.layer_types[:1]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(one)
    return frozenset(name for name, _ in blocks_of(model)[0].named_parameters())


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def plan_of(config: Any, sizes: Sequence[float | None], multiple: int = 8) -> PruningPlan:
    """A plan by axis.

    Args:
        config: of the model that is pruned.
        sizes: layers, width, key-value heads, neurons that stay: each a number, a share of the model's own where it is
            below 1, or None for all. A share is rounded; width and neurons to multiples of ``multiple``.

    Raises:
        ConfigError: one is negative, or neither a share nor a whole number.
    """
    whole = PruningPlan().sizes(config)
    found: dict[str, int | None] = {}
    for name, size in zip(_SIZES, sizes):
        if size is not None and not (0 < size < 1 or (size >= 1 and size == int(size))):
            raise ConfigError(f"{size} is no number and no share; give 12, or 0.5 for half", f"pruning.{name}")
        found[name] = size if size is None else int(size) or max(1, round(size * whole[name]))
    groups = found["num_key_value_heads"] or whole["num_key_value_heads"]
    heads = groups * (config.num_attention_heads // config.num_key_value_heads)
    for name, unit in (("hidden_size", math.lcm(multiple, heads)), ("intermediate_size", multiple)):
        size = sizes[_SIZES.index(name)]
        if size is not None and size < 1:
            found[name] = _rounded(size * whole[name], whole[name], unit)
    return PruningPlan(**found)


def _rounded(size: float, most: int, unit: int) -> int:
    return min(most, max(unit, round(size / unit) * unit))


def plan_for(config: Any, parameters: float, depth: float = 0.0, multiple: int = 8) -> PruningPlan:
    """Sizes with at most ``parameters``: first layers, then width, MLP and heads by one ratio.

    Args:
        config: of the model that is pruned.
        parameters: most that may stay; below 1 a share of the model's own.
        depth: share of the reduction that comes from dropping layers, 0 to 1. Source of the default: the Minitron
            papers find width better than depth at equal size.
        multiple: width and neurons are multiples of this.

    Raises:
        ConfigError: the model is smaller already, or nothing that small exists.
    """
    whole, tensors = PruningPlan().sizes(config), layer_tensors(config)
    total = count_parameters(config, whole, tensors)
    parameters = int(total * parameters) if 0 < parameters < 1 else int(parameters)
    if parameters >= total:
        raise ConfigError(f"the model has {total:,} parameters, not more than {parameters:,}", "pruning.parameters")
    if not 0 <= depth <= 1:
        raise ConfigError(f"{depth} is not between 0 and 1", "pruning.depth")
    wanted = total - depth * (total - parameters)
    layers = whole["num_hidden_layers"]
    while layers > 1 and count_parameters(config, {**whole, "num_hidden_layers": layers}, tensors) > wanted:
        layers -= 1
    best = None
    for step in range(1, 257):  # ratios from small to whole: the last that fits is the greatest
        plan = _scaled(whole, step / 256, multiple, config.num_attention_heads // config.num_key_value_heads)
        plan = replace(plan, num_hidden_layers=layers)
        if count_parameters(config, plan.sizes(config), tensors) <= parameters:
            best = plan
    if best is None:
        raise ConfigError(f"{parameters:,} is too few for {layers} layers; raise it or depth", "pruning.parameters")
    return best


def _scaled(whole: dict[str, int], ratio: float, multiple: int, share: int) -> PruningPlan:
    groups = max(1, round(whole["num_key_value_heads"] * ratio))
    width, neurons = whole["hidden_size"], whole["intermediate_size"]
    unit = math.lcm(multiple, share * groups)
    return PruningPlan(None, _rounded(width * ratio, width, unit), groups, _rounded(neurons * ratio, neurons, multiple))
