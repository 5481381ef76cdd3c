"""What a pruned decoder looks like, given outright or found for a number of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

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


def count_parameters(config: Any, sizes: dict[str, int], biases: int = 0) -> int:
    """Parameters of a Llama-like model of these sizes: embeddings, norms and matrices; ``biases`` a layer are added."""
    width, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    head = head_dim(config)
    share = config.num_attention_heads // config.num_key_value_heads
    keys = sizes["num_key_value_heads"] * head
    attention = width * keys * (2 * share + 2)
    layer = attention + 3 * width * sizes["intermediate_size"] + 2 * width + biases
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return embeddings + layers * layer + width


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def plan_for(config: Any, parameters: int, depth: float = 0.0, multiple: int = 8) -> PruningPlan:
    """Sizes with at most ``parameters``: first layers, then width, MLP and heads by one ratio.

    Args:
        config: of the model that is pruned.
        parameters: most that may stay.
        depth: share of the reduction that comes from dropping layers, 0 to 1. Source of the default: the Minitron
            papers find width better than depth at equal size.
        multiple: width and neurons are multiples of this.

    Raises:
        ConfigError: the model is smaller already, or nothing that small exists.
    """
    whole = PruningPlan().sizes(config)
    total = count_parameters(config, whole)
    if parameters >= total:
        raise ConfigError(f"the model has {total:,} parameters, not more than {parameters:,}", "pruning.parameters")
    if not 0 <= depth <= 1:
        raise ConfigError(f"{depth} is not between 0 and 1", "pruning.depth")
    wanted = total - depth * (total - parameters)
    layers = whole["num_hidden_layers"]
    while layers > 1 and count_parameters(config, {**whole, "num_hidden_layers": layers}) > wanted:
        layers -= 1
    best = None
    for step in range(1, 257):  # ratios from small to whole: the last that fits is the greatest
        plan = _scaled(whole, step / 256, multiple, config.num_attention_heads // config.num_key_value_heads)
        plan = replace(plan, num_hidden_layers=layers)
        if count_parameters(config, plan.sizes(config)) <= parameters:
            best = plan
    if best is None:
        raise ConfigError(f"{parameters:,} is too few for {layers} layers; raise it or depth", "pruning.parameters")
    return best


def _scaled(whole: dict[str, int], ratio: float, multiple: int, share: int) -> PruningPlan:
    def rounded(size: int, unit: int) -> int:
        return min(size, max(unit, round(size * ratio / unit) * unit))

    groups = max(1, round(whole["num_key_value_heads"] * ratio))
    unit = math.lcm(multiple, share * groups)
    return PruningPlan(None, rounded(whole["hidden_size"], unit), groups, rounded(whole["intermediate_size"], multiple))
