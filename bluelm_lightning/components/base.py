"""Component: a part of a model that builds, freezes, saves, loads and describes itself, and has no training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from torch import Tensor, nn

from bluelm_lightning.components.weights import load_strict, read_state_dict

# Lightning drives the root module only: in a child these would never be called, or abort the fit (self.log).
# fmt: off
_LOOP_HOOKS = [
    "training_step", "validation_step", "test_step", "predict_step", "configure_optimizers", "optimizer_step",
    "lr_scheduler_step", "configure_gradient_clipping", "on_fit_start", "on_fit_end", "on_train_start",
    "on_train_end", "on_train_epoch_start", "on_train_epoch_end", "on_train_batch_start", "on_train_batch_end",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad",
    "on_validation_epoch_start", "on_validation_epoch_end", "on_save_checkpoint", "on_load_checkpoint",
]
# fmt: on


class Component(L.LightningModule):
    """Base of every exchangeable part. Subclass a family below, not this class.

    A subclass takes its whole configuration as typed ``__init__`` arguments, and computes in ``forward``.

    Raises:
        TypeError: when a subclass defines a loop hook; that belongs to a stage.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrong = [name for name in _LOOP_HOOKS if name in cls.__dict__]
        if wrong:
            raise TypeError(
                f"{cls.__name__} defines {', '.join(wrong)}, which Lightning calls on the root module only; "
                "move it to a subclass of bluelm_lightning.stages.Stage"
            )

    def log(self, name: str, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{type(self).__name__}.log({name!r}): components return tensors; the stage logs")

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> NoReturn:
        self.log(", ".join(dictionary))

    def num_parameters(self, trainable: bool = False) -> int:
        """Number of parameters, tied ones counted once; with ``trainable``, only those that receive gradients."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def blocks(self) -> list[nn.Module]:
        """Parts worth gathering one at a time where weights are sharded; each is used by its own ``forward`` only.

        Default: none, the component is gathered with the root.
        """
        return []

    def save(self, path: str | Path) -> None:
        """Write the weights as one safetensors file (tied weights once)."""
        from safetensors.torch import save_model

        save_model(self, str(path))

    def load(self, path: str | Path) -> None:
        """Read weights written by :meth:`save`.

        Raises:
            ConfigError: when the file is missing, or its keys or shapes differ from this component's.
        """
        load_strict(self, read_state_dict(path, key=None), f"{path}, {type(self).__name__}", key=None)


class VisionEncoder(Component):
    """``forward(images: float[N, 3, S, S] in [0, 1]) -> float[N, P, width]``, one row of P patch features an image.

    A subclass sets ``image_size`` (S, pixels), ``num_patches`` (P, a square) and ``width``, and normalises its input.
    """

    image_size: int
    num_patches: int
    width: int

    def depth_of(self, name: str) -> tuple[int, int]:
        """Depth of parameter ``name`` and the greatest depth, for layer-wise learning rates. Default: no layers."""
        return 0, 0

    def flops_per_image(self) -> int:
        """Multiply-adds times two of one forward pass over one tile."""
        return 2 * self.num_parameters() * self.num_patches


class Projector(Component):
    """``forward(features: float[N, P, vision_dim]) -> float[N, Q, decoder_dim]`` with ``Q = num_tokens(P)``.

    A subclass sets ``self.vision_dim`` and ``self.decoder_dim`` in its ``__init__``, after ``super().__init__()``.

    Raises:
        ConfigError: from ``num_tokens`` when P does not suit the projector (not a square, say).
    """

    vision_dim: int
    decoder_dim: int

    def num_tokens(self, num_patches: int) -> int:
        raise TypeError(f"{type(self).__name__} must define num_tokens(num_patches)")

    def blocks(self) -> list[nn.Module]:
        return [self]


class Decoder(Component):
    """A causal language model that returns hidden states, never logits: losses need only the labelled positions.

    - ``embed(ids: int64[...]) -> float[..., width]``
    - ``forward(embeds: float[B, T, width], positions: int64[B, T], layout, cache, mask) -> hidden float[B, T, width]``:
      with a ``layout`` attention stays inside each document of the flattened ``B * T`` row; with a ``cache`` and a
      ``mask: bool[B, 1, T, S]`` it reads what the cache holds.
    - ``output_weight: float[vocab_size, width]``: logits are ``hidden @ output_weight.T``.
    """

    width: int
    vocab_size: int

    def embed(self, ids: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define embed(ids)")

    @property
    def output_weight(self) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define output_weight")

    def head_parameters(self) -> list[nn.Parameter]:
        """Those that logits alone need: of an output head that is not tied to the input embedding. Default: none."""
        return []

    def cache_shape(self) -> tuple[int, int, int]:
        """(layers, key-value heads, head width) of the key-value cache."""
        raise TypeError(f"{type(self).__name__} must define cache_shape()")

    def flops_per_token(self, context: int) -> int:
        """Multiply-adds times two of one forward pass over one token at a mean context of ``context`` tokens."""
        return 2 * self.num_parameters()
