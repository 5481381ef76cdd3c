"""Muon: momentum whose matrix updates are orthogonalised, beside AdamW for everything that is not a hidden matrix."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bluelm_lightning.stages.optim import AdamW, ParameterGroup

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"
_NOT_HIDDEN = ("embed", "head", "pos_")  # of a name: tables and the output layer stay with AdamW


class Muon(AdamW):
    """Muon for the hidden matrices, AdamW for embeddings, heads and vectors, with one learning rate for both.

    An update is scaled to the root mean square that AdamW's has, so learning rate and weight decay keep their meaning.
    Source of the scale: Moonlight (Liu et al. 2025), ``0.2 * sqrt(max(rows, columns))``.

    Args:
        lr: peak learning rate.
        momentum: decay of the momentum (Nesterov).
        betas, eps, weight_decay: as :class:`AdamW`.
        groups: exceptions; the first glob that matches a parameter wins.
    """

    def __init__(
        self,
        lr: float = 1e-4,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.05,
        groups: list[ParameterGroup] | None = None,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, groups)
        self.momentum = momentum

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        hidden = {p for name, p in module.named_parameters() if is_hidden(name, p)}
        groups = []
        for group in super().build(module).param_groups:
            for muon in (False, True):
                params = [p for p in group["params"] if (p in hidden) == muon]
                if params:
                    shared = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
                    groups.append({"params": params, "muon": muon, **shared})
        return MuonAdamW(groups, self.lr, self.momentum, self.betas, self.eps)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """A matrix between two hidden layers."""
    return parameter.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)


class MuonAdamW(torch.optim.AdamW):
    """One optimizer, two rules: a group with ``muon: True`` takes orthogonalised steps."""

    def __init__(self, groups: list[Any], lr: float, momentum: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["muon"]:
                self._orthogonal_step(group)
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes[tuple(parameter.shape)].append(parameter)
        for shape, parameters in shapes.items():
            updates = _orthogonalised([self._momentum(p, group["momentum"]) for p in parameters])
            rate = group["lr"] * 0.2 * math.sqrt(max(shape))
            for parameter, update in zip(parameters, updates):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _momentum(self, parameter: Tensor, decay: float) -> Tensor:
        state = self.state[parameter]
        if not state:  # AdamW expects a step where it restores a state
            state.update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(parameter))
        state["step"] += 1
        buffer = state["momentum_buffer"]
        assert parameter.grad is not None
        buffer.lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(buffer, decay)


def _orthogonalised(matrices: list[Tensor]) -> Sequence[Tensor]:
    """All matrices in one call, or where each process holds shares of them one whole matrix after the other."""
    if not hasattr(matrices[0], "full_tensor"):
        return list(orthogonalise(torch.stack(matrices)))
    from torch.distributed.tensor import DTensor, distribute_tensor

    updates: list[Tensor] = []
    for matrix in matrices:  # every process computes the same, and keeps its own share without a message
        assert isinstance(matrix, DTensor)
        whole = orthogonalise(matrix.full_tensor()[None])[0]
        updates.append(distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None))
    return updates


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """float[N, rows, columns] -> matrices with the same singular vectors and singular values near 1 (0.7 to 1.2)."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if matrices.is_cuda else matrices.dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)
