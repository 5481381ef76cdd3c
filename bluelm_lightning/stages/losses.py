"""Losses as pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK_BYTES = 64 << 20  # float32 logits held at a time; more gains no speed


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``hidden @ weight.T`` in chunks of rows; gradients are computed in the forward pass.

    So a chunk's logits are built once and freed at once, with no recomputation: the peak is one chunk, not [M, V].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        matrix = weight.to(compute)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            chunk = hidden[part].to(compute)
            log_probs = (chunk @ matrix.T).float()
            log_probs -= log_probs.logsumexp(dim=-1, keepdim=True)
            losses[part] = -log_probs.gather(1, labels[part, None]).squeeze(1)
            if grad_hidden is None and grad_weight is None:
                continue
            grad = log_probs.exp_()  # softmax; minus one at the label is d loss / d logits
            grad[torch.arange(len(chunk), device=grad.device), labels[part]] -= 1.0
            grad = (grad * scale[part, None]).to(compute)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ matrix
            if grad_weight is not None:
                grad_weight += grad.T @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        return (losses * scale).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = [g if g is None else g * grads[0].to(g.dtype) for g in (grad_hidden, grad_weight)]
        return scaled[0], scaled[1], None, None, None


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
