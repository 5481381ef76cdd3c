"""Monitors: norms by component, and a stop before a bad loss spoils the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from bluelm_lightning.callbacks import names
from bluelm_lightning.errors import ConfigError

_NAMED = 16  # sample ids in the error line; the file has all


class TrainingStopped(RuntimeError):
    """Training cannot go on. The message is one line: step, loss, samples, and what to do."""


class GradNorms(L.Callback):
    """Logs L2 norms of gradients and parameters by component: ``norm/grad/vision``, ``norm/param/decoder``, ...

    Gradients are those of the step before clipping: the mean over all its labelled tokens, also where they come from
    several micro-batches or processes. Only parameters that train count; a frozen component has
    no curve. Norms are taken on logging steps; with ``every_n_steps`` above ``trainer.log_every_n_steps``, Lightning
    repeats the last value in between. With ``optimizer_state`` the state before the step too, under the optimizer's own
    names (AdamW: ``norm/exp_avg/vision``, ``norm/exp_avg_sq/vision``). Source: the report monitors all three. With
    ``updates`` also by how much the step moved the parameters, ``norm/update/vision``: the L2 norm of the difference,
    weight decay and clipping included.

    Args:
        every_n_steps: steps between two measurements; default: every logging step.
        optimizer_state: also the optimizer's tensors.
        updates: also the updates. Costs a copy of all parameters that train, in their own precision and on their
            device (each process: of its shard), from before to after a measured step; between them nothing.
    """

    def __init__(self, every_n_steps: int | None = None, optimizer_state: bool = False, updates: bool = False) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ConfigError(f"{every_n_steps} is below 1", "trainer.callbacks.GradNorms.every_n_steps")  # type: ignore[attr-defined]
        self.every_n_steps, self.optimizer_state = every_n_steps, optimizer_state
        self.updates = updates
        self._groups: dict[str, list[nn.Parameter]] = {}
        self._before: dict[str, list[Tensor]] = {}  # parameters as they were before the step that is being measured

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._groups = components(pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        step, every = trainer.global_step + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or step % every or step % (self.every_n_steps or 1) >= every:
            return
        values: dict[str, Tensor] = {}
        factor = factor_of(pl_module)
        for name, parameters in self._groups.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                values[names.norm("grad", name)] = l2_norm(gradients) * factor
                values[names.norm("param", name)] = l2_norm([p.detach() for p in parameters])
            if self.optimizer_state:
                held = state_of(optimizer, parameters)
                values |= {names.norm(kind, name): l2_norm(tensors) for kind, tensors in held.items()}
            if self.updates:
                self._before[name] = [p.detach().clone() for p in parameters]
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """The first hook after the optimizer step; it belongs to the same log line."""
        values = {}
        for name, before in self._before.items():
            torch._foreach_sub_(before, [p.detach() for p in self._groups[name]])  # in place: no second copy
            values[names.norm("update", name)] = l2_norm(before)
        self._before = {}
        if values:
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)


def factor_of(root: Any) -> float:
    """What the stage will multiply gradients with before it clips; 1 for a root module that says nothing of it."""
    return root.gradient_factor() if hasattr(root, "gradient_factor") else 1.0


def components(root: L.LightningModule) -> dict[str, list[nn.Parameter]]:
    """Parameters that train, by innermost LightningModule: ``vision``, ``projector``, ...; the rest is ``other``.

    Two of the same name keep their whole path: ``policy.decoder``, ``value.decoder``.
    """
    found = {name: m for name, m in root.named_modules() if isinstance(m, L.LightningModule) and m is not root}
    inner = {name: m for name, m in found.items() if not any(other.startswith(f"{name}.") for other in found)}
    short = [name.rsplit(".", 1)[-1] for name in inner]
    groups: dict[str, list[nn.Parameter]] = {}
    taken: set[nn.Parameter] = set()
    for (path, module), name in zip(inner.items(), short):
        groups[name if short.count(name) == 1 else path] = [p for p in module.parameters() if p not in taken]
        taken.update(module.parameters())
    groups["other"] = [p for p in root.parameters() if p not in taken]
    trained = {name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()}
    return {name: parameters for name, parameters in trained.items() if parameters}


def state_of(optimizer: Any, parameters: list[nn.Parameter]) -> dict[str, list[Tensor]]:
    """Tensors that the optimizer keeps for these parameters, by its own name; counters are left out."""
    found: dict[str, list[Tensor]] = {}
    for parameter in parameters:
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, Tensor) and tensor.ndim:
                found.setdefault(kind, []).append(tensor)
    return found


def l2_norm(tensors: list[Tensor]) -> Tensor:
    """Norm of all values together, float32[]; of whole tensors also where each process holds a shard."""
    sharded = any(hasattr(tensor, "full_tensor") for tensor in tensors)
    # DTensor has no rule for this call with a dtype (torch 2.15): there the norm of a bf16 tensor is rounded to bf16
    norms = torch._foreach_norm(tensors, 2, **({} if sharded else {"dtype": torch.float32}))
    total = torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
    return total.full_tensor() if sharded else total


class StopOnNaN(L.Callback):
    """Stops before the optimizer step when the loss, or a gradient, is NaN or infinite.

    Plain Lightning would save NaN weights over a good checkpoint and exit 0. All processes stop together. Reads one
    value from the device a step, after the backward pass is under way. A step without any gradient, such as one that
    `LossSpikes` skips, moves nothing and is passed over.

    Args:
        gradients: also check the gradients. Not done with ``16-mixed``, whose loss scaler skips such steps itself.
    """

    def __init__(self, gradients: bool = True) -> None:
        self.gradients = gradients
        self._losses: list[Tensor] = []  # of the micro-batches of this step
        self._samples: list[list[str]] = []
        self._current: list[str] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._current = list(getattr(batch, "sample_ids", []))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float())
        self._samples.append(self._current)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        losses, samples = self._losses, self._samples
        self._losses, self._samples = [], []
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        watched = list(losses) if gradients else []
        if self.gradients and gradients and not str(trainer.precision).startswith("16"):
            watched.append(l2_norm(gradients))
        bad = bool(watched) and not bool(torch.isfinite(torch.stack(watched)).all())
        if trainer.world_size > 1:  # or the others would wait for this process forever
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            raise TrainingStopped(_explain(trainer, [float(loss) for loss in losses], samples))


def _explain(trainer: L.Trainer, losses: list[float], samples: list[list[str]]) -> str:
    """One line, and every sample id in ``stopped.json`` of the run folder."""
    step = trainer.global_step + 1
    wrong = [n for n, loss in enumerate(losses) if not abs(loss) < float("inf")]
    ids = [sample for n in wrong or range(len(samples)) for sample in samples[n]]
    path = Path(trainer.default_root_dir) / f"stopped-rank{trainer.global_rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": step, "losses": [str(loss) for loss in losses], "samples": ids}, indent=1))
    what = f"loss is {losses[wrong[0]]}" if wrong else f"loss is {losses[-1]:.4g} but a gradient is not finite"
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return (
        f"step {step}: {what} (process {trainer.global_rank}), samples {', '.join(ids[:_NAMED])}{more}; weights and "
        f"checkpoints are those of step {step - 1}. Look at these samples ({path}) or lower the learning rate"
    )
