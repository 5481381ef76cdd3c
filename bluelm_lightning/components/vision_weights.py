"""Weights of vision towers from other libraries: timm's own names, and transformers' SigLIP and SigLIP2 names."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bluelm_lightning.components.weights import load_strict, read_state_dict
from bluelm_lightning.errors import ConfigError


def load_vision_weights(model: Any, path: str) -> None:
    """Load a local file into a timm vision transformer: timm's own names, or transformers' SigLIP names."""
    state = read_state_dict(path, key="weights")
    if any("vision_model.encoder.layers" in key or key.startswith("encoder.layers.") for key in state):
        state = siglip_to_timm(state)
        _want_tanh_gelu(model, path)
    own = model.state_dict()
    _resize_positions(model, state)
    load_strict(model, {key: tensor for key, tensor in state.items() if not _unused(key, own)}, path, "weights")


def _unused(key: str, own: dict[str, Tensor]) -> bool:
    """Pooling heads and classifiers that a tower of patch features does not have."""
    return key not in own and key.split(".")[0] in ("attn_pool", "head", "fc_norm", "head_dist")


def _want_tanh_gelu(model: Any, path: str) -> None:
    x = torch.linspace(-3, 3, 7)
    if not torch.allclose(model.blocks[0].mlp.act(x), F.gelu(x, approximate="tanh"), atol=1e-5):
        raise ConfigError(f"{path}: SigLIP is trained with the tanh GELU; set shape.act_layer: gelu_tanh", "weights")


def _resize_positions(model: Any, state: dict[str, Tensor]) -> None:
    """Position embeddings of a file for another image size are interpolated, as timm does for its own weights."""
    given, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if given is not None and own is not None and given.shape[1] != own.shape[1] and given.shape[2] == own.shape[2]:
        from timm.layers import resample_abs_pos_embed

        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        state["pos_embed"] = resample_abs_pos_embed(given, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


_SIGLIP_UNUSED = re.compile(r"head\.|logit_|embeddings\.position_ids|.*\.self_attn\.[kv]_proj\.")
_SIGLIP_NAMES = [
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc([12])\.", r"blocks.\1.mlp.fc\2."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
]


def siglip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the vision half of a transformers SigLIP / SigLIP2 state dict to timm's names."""
    strip = re.compile(r"^(?:vision_model\.)+")
    vision = {strip.sub("", key): tensor for key, tensor in state.items() if not key.startswith("text_model.")}
    out: dict[str, Tensor] = {}
    for key, tensor in vision.items():
        if key == "embeddings.position_embedding.weight":
            out["pos_embed"] = tensor[None]
        elif match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)$", key):
            layer, kind = match.groups()
            names = [f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            out[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat([vision[name] for name in names])
        elif not _SIGLIP_UNUSED.match(key):
            for pattern, replacement in _SIGLIP_NAMES:
                key = re.sub(pattern, replacement, key)
            out[key] = tensor  # a name that is not known is left over, and the strict load says so
    return out
