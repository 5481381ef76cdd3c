"""How much each layer, channel, group of heads and neuron matters. L layers, D channels, K groups, F neurons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bluelm_lightning.components.adapters import layers_of
from bluelm_lightning.components.base import Decoder
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import PackedBatch


@dataclass
class Importance:
    """Scores of everything that can be cut; the greater, the more it matters. Scales differ between fields.

    Args:
        layers: float[L].
        channels: float[D], of the states between layers.
        groups: float[L, K], key-value heads with the query heads that share them.
        neurons: float[L, F], of the MLPs.
    """

    layers: Tensor
    channels: Tensor
    groups: Tensor
    neurons: Tensor


def blocks_of(model: nn.Module) -> list[Any]:
    """The layers of a Llama-like model of transformers.

    Raises:
        ConfigError: the model has another build, or low-rank adapters.
    """
    if layers_of(model):
        raise ConfigError("the model has low-rank adapters; call components.adapters.absorb on it first", "pruning")
    layers: Any = getattr(getattr(model, "model", None), "layers", None)
    wanted = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "input_layernorm")
    if layers is None or any(not _has(layers[0], name) for name in wanted):
        raise ConfigError(f"{type(model).__name__} is not built like Llama or Qwen; it cannot be pruned", "pruning")
    return list(layers)


def _has(module: Any, path: str) -> bool:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module is not None


@torch.no_grad()
def activation_importance(vlm: VisionLanguageModel, batches: Iterable[PackedBatch]) -> Importance:
    """From one forward pass over a calibration set.

    Neurons and channels: mean absolute activation (the input of the MLP's last layer; the output of the norms). Groups:
    mean L2 norm of what their heads add. Layers: 1 - cosine of a layer's input and output, a token (block importance).

    Args:
        vlm: its decoder is a Llama-like model of transformers; its mode is restored.
        batches: packed documents, with or without pictures; a few hundred thousand tokens are plenty.

    Raises:
        ConfigError: no batch, or a model of another build.
    """
    sums = _Sums(vlm.decoder.model)
    was = vlm.training
    vlm.eval()
    try:
        for batch in batches:
            sums.kept = batch.segments.flatten() >= 0
            vlm(batch)
            sums.tokens += int(sums.kept.sum())
    finally:
        sums.remove()
        vlm.train(was)
    if not sums.tokens:
        raise ConfigError("the calibration set is empty; give at least one batch", "pruning")
    return sums.importance()


class _Sums:
    """Running sums, filled by hooks."""

    def __init__(self, model: Any) -> None:
        config, blocks = model.config, blocks_of(model)
        self.layers = torch.zeros(len(blocks))
        self.channels = torch.zeros(config.hidden_size)
        self.groups = torch.zeros(len(blocks), config.num_key_value_heads)
        self.neurons = torch.zeros(len(blocks), config.intermediate_size)
        self.tokens, self.kept = 0, torch.empty(0)
        self.hooks = [model.model.norm.register_forward_hook(self._channels)]
        for number, block in enumerate(blocks):
            norms = (block.input_layernorm, block.post_attention_layernorm)
            self.hooks += [norm.register_forward_hook(self._channels) for norm in norms]
            self.hooks += [
                block.mlp.down_proj.register_forward_pre_hook(self._neurons(number)),
                block.self_attn.o_proj.register_forward_pre_hook(self._groups(number)),
                block.register_forward_hook(self._layers(number)),
            ]

    def _flat(self, values: Tensor) -> Tensor:
        return values.flatten(0, -2)[self.kept].float()

    def _channels(self, module: Any, inputs: Any, output: Tensor) -> None:
        self.channels += self._flat(output).abs().sum(0).cpu()

    def _neurons(self, number: int) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            self.neurons[number] += self._flat(inputs[0]).abs().sum(0).cpu()

        return hook

    def _groups(self, number: int) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            heads = self._flat(inputs[0])
            self.groups[number] += heads.unflatten(1, (self.groups.shape[1], -1)).norm(dim=2).sum(0).cpu()

        return hook

    def _layers(self, number: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            alike = torch.cosine_similarity(self._flat(inputs[0]), self._flat(after), dim=1)
            self.layers[number] += float((1 - alike).sum())

        return hook

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def importance(self) -> Importance:
        return Importance(*(value / self.tokens for value in (self.layers, self.channels, self.groups, self.neurons)))


@torch.no_grad()
def magnitude_importance(decoder: Decoder) -> Importance:
    """From the weights alone: L2 norms of what would be cut. The baseline."""
    model: Any = decoder.model
    blocks, groups = blocks_of(model), model.config.num_key_value_heads
    neurons = [b.mlp.down_proj.weight.norm(dim=0) * b.mlp.up_proj.weight.norm(dim=1) for b in blocks]
    heads = [b.self_attn.o_proj.weight.unflatten(1, (groups, -1)).norm(dim=(0, 2)) for b in blocks]
    layers = [sum(float(p.square().sum()) for p in b.parameters()) ** 0.5 for b in blocks]
    channels = model.get_input_embeddings().weight.norm(dim=0)
    return Importance(
        torch.tensor(layers), channels.float().cpu(), torch.stack(heads).float().cpu(), torch.stack(neurons).cpu()
    )
