"""Distillation losses: the student's distribution against the teacher's, a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.losses import HeadGradients, compute_dtype, scaled

_CHUNK_BYTES = 64 << 20  # float32 logits of the student held at a time
_TINY = 1e-12
KINDS = ("forward", "reverse")


@dataclass(frozen=True)
class DistillPlan:
    """What the student is drawn to.

    Args:
        kind: ``forward`` = KL(teacher || student), covers all that the teacher does; ``reverse`` = KL(student ||
            teacher), keeps to what the teacher finds likely.
        temperature: of both distributions; the divergence is scaled by its square (Hinton et al. 2015).
        top_k: the teacher's k likeliest tokens, and all others as one; 0 = the whole vocabulary.
        weight: of the divergence; cross-entropy with the labels gets ``1 - weight``.
        hidden_weight: of the squared distance of the last states, after a learnt map; 0 = none.

    Raises:
        ConfigError: an unknown kind, or a number out of range.

    Source: the report distils its 3B model from a 7B teacher; the loss is unknown, this is our choice.
    """

    kind: str = "forward"
    temperature: float = 1.0
    top_k: int = 0
    weight: float = 1.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"{self.kind!r} is not one of {', '.join(KINDS)}", "model.plan.kind")
        if not self.temperature > 0 or self.top_k < 0 or not 0 <= self.weight <= 1 or not self.hidden_weight >= 0:
            raise ConfigError(f"{self}: give temperature > 0, top_k >= 0, 0 <= weight <= 1", "model.plan")


def teacher_distribution(logits: Tensor, plan: DistillPlan) -> tuple[Tensor, Tensor]:
    """The teacher's tokens int64[R, K] and their log-probabilities float32[R, K] at the plan's temperature."""
    logprobs = (logits.float() / plan.temperature).log_softmax(-1)
    if not plan.top_k or plan.top_k >= logits.shape[1]:
        return torch.arange(logits.shape[1], device=logits.device).expand_as(logits), logprobs
    values, ids = logprobs.topk(plan.top_k, dim=-1)
    return ids, values


def divergence(logits: Tensor, ids: Tensor, teacher: Tensor, plan: DistillPlan) -> Tensor:
    """float32[R], the divergence at each position, times the squared temperature.

    Args:
        logits: float[R, V], the student's.
        ids: int64[R, K], the teacher's tokens, each once.
        teacher: float32[R, K], their log-probabilities. What is left of its mass stands on all other tokens as one.
        plan: kind and temperature.
    """
    student = logits.float() / plan.temperature
    if ids.shape[1] == logits.shape[1]:  # every token is there: nothing is left for the others
        mine, theirs = student.log_softmax(-1).gather(1, ids), teacher
    else:
        # from the logits: 1 - sum(p) is noise, and flat, where the student is sure of the teacher's tokens
        others = student.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        mine = torch.cat([student.gather(1, ids), others], 1).log_softmax(-1)
        theirs = torch.cat([teacher, _rest(teacher)], 1)
    if plan.kind == "forward":
        terms = theirs.exp() * (theirs - mine)
    else:
        terms = mine.exp() * (mine - theirs)
    return terms.sum(-1) * plan.temperature**2


def _rest(logprobs: Tensor) -> Tensor:
    """log(1 - sum of the probabilities), float32[R, 1]; the teacher's k tokens are all that there is of it."""
    return (1 - logprobs.exp().sum(-1, keepdim=True)).clamp_min(_TINY).log()


class _ChunkedLoss(torch.autograd.Function):
    """Sum of a loss of ``hidden @ weight.T`` over chunks of rows; gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, loss_of: Callable[[Tensor, slice], Tensor], rows: int) -> Any:
        compute = compute_dtype(hidden)
        needs = ctx.needs_input_grad
        gradients = HeadGradients(hidden if needs[0] else None, weight if needs[1] else None, compute)
        matrix = weight.to(compute)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            chunk = hidden[part].to(compute)
            with torch.set_grad_enabled(any(needs[:2])):
                logits = (chunk @ matrix.T).float().detach().requires_grad_()
                loss = loss_of(logits, part)
            total += loss.detach()
            if loss.requires_grad:
                (grad,) = torch.autograd.grad(loss, logits)
                gradients.add(part, grad, chunk, matrix)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        ctx.save_for_backward(*gradients.saved())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        return *scaled(ctx, grads[0]), None, None


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    teacher: Callable[[slice], tuple[Tensor, Tensor]],
    plan: DistillPlan,
    scale: float,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and divergence without a whole logit matrix of student or teacher.

    Args:
        hidden: float[M, D], the student's states at labelled positions.
        weight: float[V, D], the student's output head.
        labels: int64[M].
        teacher: gives tokens and log-probabilities of the teacher for a slice of the positions.
        plan: what counts how much.
        scale: weight of each position in the sum; ``1 / M`` gives the mean.
        chunk_rows: positions whose logits are held at a time; default: as many as fit 64 MiB.

    Returns:
        The loss (differentiable, first order only), and cross-entropy and divergence of each position (float32[M]).
    """
    if not torch.is_grad_enabled():  # inside the function grad mode is always off, and gradients would be computed
        hidden, weight = hidden.detach(), weight.detach()
    rows = chunk_rows or max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    entropies = torch.zeros(len(labels), device=hidden.device)
    divergences = torch.zeros(len(labels), device=hidden.device)

    def loss_of(logits: Tensor, part: slice) -> Tensor:
        cross = torch.nn.functional.cross_entropy(logits, labels[part], reduction="none")
        apart = divergence(logits, *teacher(part), plan)
        entropies[part], divergences[part] = cross.detach(), apart.detach()
        return (((1 - plan.weight) * cross + plan.weight * apart) * scale).sum()

    loss = _ChunkedLoss.apply(hidden, weight, loss_of, rows)
    return loss, entropies, divergences
