"""Decoders: any transformers causal language model, with attention inside each document of a packed row."""

from __future__ import annotations

from copy import copy
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluelm_lightning.components.adapters import LowRank
from bluelm_lightning.components.attention import DocumentLayout, register_attention
from bluelm_lightning.components.base import Decoder
from bluelm_lightning.errors import ConfigError

_UNDECLARED = ("head_dim", "rope_theta", "rope_scaling")  # read by models whose configuration does not declare them


class CausalDecoder(Decoder):
    """A causal language model of transformers, from a configuration (random weights) or a checkpoint.

    Args:
        architecture: transformers model type (``llama``, ``qwen2``, ``qwen3``, ...), when there is no checkpoint.
        config: keyword arguments of that type's configuration, or changes to the checkpoint's.
        checkpoint: Hugging Face id, local folder, or ``.gguf`` file.
        vocab_size: resize the embeddings to this many rows (added special tokens; multiples of 64 are faster).
        tie_embeddings: share the input embedding with the output head; default: what the configuration says.
        rope: RoPE parameters, for example
            ``{rope_type: yarn, factor: 8.0, original_max_position_embeddings: 4096, rope_theta: 10000.0}``.
        gradient_checkpointing: recompute layers in the backward pass instead of storing their activations.
        adapters: train low-rank adapters instead of the weights.

    Raises:
        ConfigError: unknown architecture or setting, missing checkpoint, or a model whose logits are not
            ``hidden @ weight.T`` or whose layers look across documents (recurrent ones, ALiBi).
    """

    def __init__(
        self,
        architecture: str = "llama",
        config: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        vocab_size: int | None = None,
        tie_embeddings: bool | None = None,
        rope: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        adapters: LowRank | None = None,
    ) -> None:
        super().__init__()
        changes = dict(config or {})
        if tie_embeddings is not None:
            changes["tie_word_embeddings"] = tie_embeddings
        if rope is not None:
            changes["rope_parameters"] = rope
        if vocab_size is not None and (checkpoint is None or torch.empty(0).device.type == "meta"):
            changes["vocab_size"] = vocab_size
        build = _from_config(architecture, changes) if checkpoint is None else _from_checkpoint(checkpoint, changes)
        self.model = build.train()  # from_pretrained leaves eval mode, where gradient checkpointing is off
        if vocab_size is not None and vocab_size != self.vocab_size:
            self.model.resize_token_embeddings(vocab_size)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        _refuse_unsuited(self.model)
        names = signature(self.model.base_model.forward).parameters
        self._cache_key = "cache" if "cache" in names else "past_key_values"  # its name before transformers 5.24
        if adapters is not None:
            adapters.put(self.model)

    @property
    def width(self) -> int:  # type: ignore[override]
        return int(self.model.config.hidden_size)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def output_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    def head_parameters(self) -> list[nn.Parameter]:
        shared = {id(parameter) for parameter in self.model.get_input_embeddings().parameters()}
        return [p for p in self.model.get_output_embeddings().parameters() if id(p) not in shared]

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def blocks(self) -> list[nn.Module]:
        return list(getattr(self.model.base_model, "layers", []))

    def cache_shape(self) -> tuple[int, int, int]:
        c = self.model.config
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return c.num_hidden_layers, getattr(c, "num_key_value_heads", None) or c.num_attention_heads, head

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        layout: DocumentLayout | None = None,
        cache: Any = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """embeds float[B, T, width], positions int64[B, T] -> hidden float[B, T, width] (see :class:`Decoder`)."""
        shape = embeds.shape
        if layout is not None:  # documents may be anywhere in the flattened row
            embeds, positions = embeds.reshape(1, -1, shape[-1]), positions.reshape(1, -1)
        out = self.model.base_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=mask,
            use_cache=cache is not None,
            layout=layout,
            **({} if cache is None else {self._cache_key: cache}),
        )
        return out.last_hidden_state.view(shape)

    def scale_rope(self, on: bool) -> None:
        """Switch the rotary scaling of the configuration (``rope``) on, or off: plain rotations of the same base.

        Raises:
            ConfigError: the configuration has no scaling, or the architecture no rotary embedding of its own.
        """
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        found = [(name, m) for name, m in self.model.named_modules() if hasattr(m, "inv_freq") and hasattr(m, "config")]
        if rope.get("rope_type", "default") == "default" or not found:
            raise ConfigError(
                "there is no scaling to switch; set for example rope_type: yarn", "model.vlm.decoder.rope"
            )
        config = copy(self.model.config)
        if not on:
            config.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        for name, module in found:
            fresh = type(module)(config=config).to(module.inv_freq.device)
            fresh.config = self.model.config
            self.model.set_submodule(name, fresh)

    def flops_per_token(self, context: int) -> int:
        layers, _, head = self.cache_shape()
        embedding = self.model.get_input_embeddings().weight
        tied = embedding is self.output_weight
        body = self.num_parameters() - (0 if tied else embedding.numel())  # a lookup multiplies nothing
        return 2 * body + 4 * layers * context * self.model.config.num_attention_heads * head


def _from_config(architecture: str, changes: dict[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        _check_settings(AutoConfig.for_model(architecture), changes)
        config = AutoConfig.for_model(architecture, **changes)
        return AutoModelForCausalLM.from_config(config, attn_implementation=register_attention())
    except ConfigError:
        raise
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"transformers cannot build {architecture!r}: {error}", "architecture") from error


def _check_settings(config: Any, changes: dict[str, Any]) -> None:
    """transformers takes any keyword: a misspelt ``hiden_size`` would give a model of 7 billion parameters."""
    for key in changes:
        if not hasattr(config, key) and key not in _UNDECLARED:
            near = get_close_matches(key, list(config.to_dict()), 1)
            hint = f"did you mean {near[0]}?" if near else "see its configuration in transformers"
            raise ConfigError(f"{config.model_type} has no setting {key!r}; {hint}", f"config.{key}")


def _from_checkpoint(checkpoint: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(checkpoint)
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    where = str(path.parent) if gguf else checkpoint
    if (gguf and not path.is_file()) or (not gguf and checkpoint.startswith((".", "/", "~")) and not path.is_dir()):
        raise ConfigError(f"{path} does not exist; give a Hugging Face id, a folder or a .gguf file", "checkpoint")
    _check_settings(AutoConfig.from_pretrained(where, **gguf), changes)
    attention = {"attn_implementation": register_attention()}
    if torch.empty(0).device.type == "meta":  # --summary: shapes only, no weights are read
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where, **gguf, **changes), **attention)
    if not gguf:
        return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **attention, **changes)
    return _from_gguf(where, gguf, changes)


def _from_gguf(where: str, gguf: dict[str, str], changes: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(where, **gguf, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would refuse to train or save a "quantised" model
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=register_attention())
    model.load_state_dict(read.state_dict())
    return model


def _refuse_unsuited(model: Any) -> None:
    """Models that would train without an error and be wrong."""
    config = model.config
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"{config.model_type} scales its logits ({key}={getattr(config, key)}), which the chunked loss "
                "does not; choose an architecture with plain logits"
            )
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    if unsuited := sorted(scalings & {"longrope", "dynamic"}):
        raise ConfigError(
            f"rotary scaling {unsuited[0]!r} follows the longest document of a row, so each would depend on the rest; "
            "give yarn, linear or llama3",
            "decoder.rope",
        )
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError(f"the head of {config.model_type} has a bias, which the loss leaves out; choose another")
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if layers or not model._supports_attention_backend:
        raise ConfigError(
            f"{config.model_type} has {', '.join(sorted(layers)) or 'attention'} of its own, which would look across "
            "documents; choose an architecture with plain attention, such as llama, qwen3 or mistral"
        )
