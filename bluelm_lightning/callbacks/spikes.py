"""LossSpikes: optimizer steps whose loss jumps are skipped, and said."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from bluelm_lightning.callbacks.monitors import factor_of
from bluelm_lightning.errors import ConfigError


class LossSpikes(L.Callback):
    """Skips an optimizer step whose loss lies more than ``deviations`` above the median of the last ``window`` steps.

    The deviation is robust: 1.4826 times the median distance from the median, at least ``floor``. A skipped step
    changes no weight and no optimizer state; its loss does not enter the window. After ``patience`` skips in a row the
    next step is taken and the window begins anew: the loss has moved for good. All processes decide alike, by the mean
    loss over all labelled tokens of the step, whatever its micro-batches and processes; one that is not finite is a
    spike from the first step on, and never followed. Reads one value from the device a step. Logged as
    ``spikes/skipped``, the number since the run began.

    Args:
        deviations: how far above the median is a spike.
        window: optimizer steps that the median goes over; nothing is skipped before it is full.
        floor: least deviation, nats.
        patience: most skips in a row.

    Raises:
        ConfigError: a number out of range.

    Source: the report watches its losses and recovers by itself; skipping spikes is OLMo 2's way (2024), the rule is
    our choice.
    """

    def __init__(self, deviations: float = 8.0, window: int = 64, floor: float = 0.02, patience: int = 8) -> None:
        if deviations <= 0 or window < 2 or floor <= 0 or patience < 1:
            given = f"deviations={deviations}, window={window}, floor={floor}, patience={patience}"
            raise ConfigError(f"{given}; give deviations and floor > 0, window >= 2", "trainer.callbacks.LossSpikes")  # type: ignore[attr-defined]
        self.deviations, self.window, self.floor, self.patience = deviations, window, floor, patience
        self.recent: deque[float] = deque(maxlen=window)
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []  # of the micro-batches of this step

    def threshold(self) -> float | None:
        """The greatest loss that is no spike; None while the window fills."""
        if len(self.recent) < self.window:
            return None
        centre = statistics.median(self.recent)
        spread = 1.4826 * statistics.median(abs(loss - centre) for loss in self.recent)
        return centre + self.deviations * max(spread, self.floor)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        total = torch.stack(self._losses).sum()  # each was divided by their number
        self._losses = []
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="mean")
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # has multiplied the loss before the hook saw it
        scale = scaler.get_scale() if scaler else 1.0
        loss, most = float(total) / scale * factor_of(pl_module), self.threshold()
        finite = math.isfinite(loss)
        if finite and (most is None or loss <= most):
            self.recent.append(loss)
            self.in_a_row = 0
        elif finite and self.in_a_row >= self.patience:
            self.recent, self.in_a_row = deque([loss], self.window), 0
        else:
            self._skip(trainer, pl_module, loss, most)
        pl_module.log("spikes/skipped", float(self.skipped), on_step=True, on_epoch=False, batch_size=1)

    def _skip(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: float, most: float | None) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        for parameter in pl_module.parameters():
            parameter.grad = None  # zero would still let weight decay and momentum move the weights
        why = "is not finite" if most is None else f"is above {most:.4g}"
        rank_zero_warn(f"step {trainer.global_step + 1}: loss {loss:.4g} {why}, the step is skipped")

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent = deque(state["recent"], self.window)
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
