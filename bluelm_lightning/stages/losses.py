"""Losses as pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK_BYTES = 64 << 20  # float32 logits held at a time; more gains no speed


def product(grad: Tensor, other: Tensor) -> Tensor:
    """``grad @ other`` in the precision of ``other``; float32 where that is float16.

    Gradients that are computed in the forward pass do not have the factor of a gradient scaler in them, and float16
    rounds them to 0. So they are multiplied by what fits, and the product is divided by it.

    Args:
        grad: float32[A, B].
        other: float[B, C].
    """
    if other.dtype != torch.float16:
        return grad.to(other.dtype) @ other
    most = grad.abs().sum(1).amax() * other.abs().amax().float().clamp_min(1.0)  # no entry of the product is above it
    room = 2.0**15 / most.clamp_min(1e-30)
    return ((grad * room).half() @ other).float() / room


class HeadGradients:
    """Gradients of an output head's input and weight, gathered a chunk of positions at a time in the forward pass.

    Sums over chunks are float32: with 110 positions a chunk, bfloat16 sums of a head were 3 % off.

    Args:
        hidden, weight: ``None`` = needs none.
        compute: precision of the products.
    """

    def __init__(self, hidden: Tensor | None, weight: Tensor | None, compute: torch.dtype) -> None:
        wide = torch.float32 if compute == torch.float16 else None  # rounded only when a scaler's factor is in it
        self.hidden = None if hidden is None else torch.zeros_like(hidden, dtype=wide)
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=torch.float32)
        self._weight_dtype = wide or (None if weight is None else weight.dtype)

    def add(self, part: slice, grad: Tensor, chunk: Tensor, matrix: Tensor) -> None:
        """Those of positions ``part``: ``grad`` float32[R, V] of the logits ``chunk`` @ ``matrix``.T."""
        if self.hidden is not None:
            self.hidden[part] = product(grad, matrix)
        if self.weight is not None:
            self.weight += product(grad.T, chunk)

    def saved(self) -> tuple[Tensor | None, Tensor | None]:
        """For the backward pass."""
        return self.hidden, None if self.weight is None else self.weight.to(self._weight_dtype)


def scaled(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What was saved of state and weight times the gradient from above, in their precisions."""
    parts = zip(ctx.saved_tensors, ctx.dtypes)
    hidden, weight = (g if g is None else (g * above.to(g.dtype)).to(dtype) for g, dtype in parts)
    return hidden, weight


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``hidden @ weight.T`` in chunks of rows; gradients are computed in the forward pass.

    So a chunk's logits are built once and freed at once, with no recomputation: the peak is one chunk, not [M, V].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        compute = compute_dtype(hidden)
        needs = ctx.needs_input_grad
        gradients = HeadGradients(hidden if needs[0] else None, weight if needs[1] else None, compute)
        matrix = weight.to(compute)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            chunk = hidden[part].to(compute)
            log_probs = (chunk @ matrix.T).float()
            log_probs -= log_probs.logsumexp(dim=-1, keepdim=True)
            losses[part] = -log_probs.gather(1, labels[part, None]).squeeze(1)
            if not any(needs[:2]):
                continue
            grad = log_probs.exp_()  # softmax; minus one at the label is d loss / d logits
            grad[torch.arange(len(chunk), device=grad.device), labels[part]] -= 1.0
            gradients.add(part, grad * scale[part, None], chunk, matrix)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        ctx.save_for_backward(*gradients.saved())
        return (losses * scale).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        return *scaled(ctx, grads[0]), None, None, None


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The precision of matrix products of ``hidden``: that of autocast where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor | None = None, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of next-token losses without the whole logit matrix.

    Args:
        hidden: float[M, D], labelled positions only.
        weight: float[V, D], the output head.
        labels: int64[M].
        scale: float[M], weight of each position in the sum; default ``1 / M``, the mean.
        chunk_rows: positions whose logits are held at a time; default: as many as fit 64 MiB.

    Returns:
        The weighted sum (differentiable, first order only) and the loss of each position (float32[M], detached).
    """
    if scale is None:
        scale = torch.full((len(labels),), 1.0 / max(len(labels), 1), device=hidden.device)
    if not torch.is_grad_enabled():  # inside the function grad mode is always off, and gradients would be computed
        hidden, weight = hidden.detach(), weight.detach()
    rows = chunk_rows or max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    total, losses = _LinearCrossEntropy.apply(hidden, weight, labels, scale, rows)
    return total, losses.detach()


def linear_token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_rows: int | None = None) -> Tensor:
    """Loss of each position, float32[M], differentiable: what a loss over whole documents is made of.

    Also of no position: a process with padding only takes part in the backward pass, or the others would wait for it.

    Args:
        hidden: float[M, D].
        weight: float[V, D], the output head.
        labels: int64[M].
        chunk_rows: positions whose logits are held at a time (recomputed in the backward pass); default: 64 MiB.
    """
    rows = chunk_rows or max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    parts = [slice(start, start + rows) for start in range(0, max(len(labels), 1), rows)]
    if len(parts) == 1 or not torch.is_grad_enabled():
        losses = [_token_losses(hidden[part], weight, labels[part]) for part in parts]
    else:
        losses = [checkpoint(_token_losses, hidden[p], weight, labels[p], use_reentrant=False) for p in parts]  # type: ignore[misc]
    return torch.cat(losses)


def _token_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).float(), labels, reduction="none")


def reference_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same mean by full logits: what tests and benchmarks compare with."""
    return F.cross_entropy((hidden @ weight.T).float(), labels)
