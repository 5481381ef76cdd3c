"""RLAlarms: thresholds on what reinforcement learning logs, each with a plain sentence."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from bluelm_lightning.callbacks.continued import drop_later
from bluelm_lightning.errors import ConfigError

_FILE = "alarms.jsonl"
_MODES = ("thinking", "direct")


@dataclass(frozen=True)
class Alarm:
    """A bound on one logged value.

    Args:
        metric: its name, or the beginning of several names that end in ``*``.
        low: least value that is well.
        high: greatest value that is well.
        sentence: what it means and what to do.
    """

    metric: str
    low: float | None = None
    high: float | None = None
    sentence: str = ""

    def wrong(self, value: float) -> bool:
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    def matches(self, name: str) -> bool:
        return name.startswith(self.metric[:-1]) if self.metric.endswith("*") else name == self.metric


def default_alarms() -> list[Alarm]:
    """The alarms of a stage that is given none."""
    return [
        Alarm("policy/entropy", low=0.01, sentence="the policy hardly varies any more; raise clip_high or temperature"),
        Alarm("policy/kl", high=1.0, sentence="the policy is far from its reference; raise kl_coef or lower lr"),
        Alarm("policy/clipped_*", high=0.3, sentence="updates are too large for their rollouts; lower lr or epochs"),
        Alarm("policy/gap_mean", high=0.1, sentence="trainer and rollout engine disagree; set algorithm.correction"),
        Alarm("rollout/truncated", high=0.3, sentence="answers hit the length limit; raise max_new_tokens"),
        Alarm("rollout/repetition", high=0.5, sentence="answers repeat themselves; raise the repetition reward"),
        Alarm("rollout/zero_variance", high=0.9, sentence="hardly a group teaches; use a ledger or other prompts"),
        Alarm("reward/disagreement/*", high=0.3, sentence="two verdicts disagree; look at the rollout table"),
        Alarm("mode/switch_accuracy", low=0.9, sentence="the switch no longer decides whether the model thinks"),
        Alarm("mode/think_leak", high=0.05, sentence="the model thinks where it was not asked to"),
        Alarm("mode/empty_think", high=0.2, sentence="thinking is blank; raise the format reward"),
    ]


class RLAlarms(L.Callback):
    """Watches the means of the last ``window`` steps, warns in one line and writes ``alarms.jsonl``.

    Besides the bounds it compares each mode's accuracy with that of its first full window: ``mode_drop`` below it means
    that learning one mode erodes the other. An alarm is told when it begins and again after ``quiet_steps``.
    ``alarm/count`` is logged. A reward that is missing more often than ``missing`` raises one too.

    Args:
        alarms: bounds; default: :func:`default_alarms`.
        window: optimizer steps that a mean goes over.
        mode_drop: fall of a mode's accuracy that is too much.
        missing: share of missing scores of a reward that is too much.
        quiet_steps: steps between two warnings of the same alarm.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        alarms: list[Alarm] | None = None,
        window: int = 10,
        mode_drop: float = 0.15,
        missing: float = 0.2,
        quiet_steps: int = 50,
    ) -> None:
        if window < 1 or quiet_steps < 1 or not 0 < mode_drop <= 1 or not 0 <= missing <= 1:
            raise ConfigError("give window and quiet_steps >= 1, mode_drop and missing in (0, 1]", "trainer.callbacks")
        self.alarms = default_alarms() if alarms is None else alarms
        self.window, self.mode_drop, self.missing, self.quiet_steps = window, mode_drop, missing, quiet_steps
        self._recent: dict[str, deque[float]] = {}
        self._first: dict[str, float] = {}
        self._told: dict[str, int] = {}
        self._parts: dict[str, list[float]] = {}  # values of this step's micro-batches
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        drop_later(trainer, _FILE)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        for name, value in trainer.callback_metrics.items():
            self._parts.setdefault(name, []).append(float(value))
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped:  # gradients still accumulate
            return
        for name, parts in self._parts.items():
            self._recent.setdefault(name, deque(maxlen=self.window)).append(sum(parts) / len(parts))
        self._parts = {}
        full = {n: sum(v) / len(v) for n, v in self._recent.items() if len(v) == self.window}
        found = self.check(full)
        pl_module.log("alarm/count", float(len(found)), on_step=True, on_epoch=False, batch_size=1)
        for name, sentence in found.items():
            if trainer.global_step >= self._told.get(name, 0):
                self._told[name] = trainer.global_step + self.quiet_steps
                self._tell(trainer, name, full[name], sentence)

    def check(self, means: dict[str, float]) -> dict[str, str]:
        """Names of the values that are wrong, and the sentence of each."""
        found = {n: a.sentence for a in self.alarms for n, v in means.items() if a.matches(n) and a.wrong(v)}
        for name, value in means.items():
            if name.startswith("reward/") and name.endswith("/missing") and value > self.missing:
                found[name] = "a reward is missing too often: its service may be down"
        for mode in _MODES:
            name = f"mode/{mode}_correct"
            if name in means and means[name] < self._first.setdefault(name, means[name]) - self.mode_drop:
                found[name] = f"the {mode} mode gets worse than {self._first[name]:.1%}; give it more prompts"
        return found

    def _tell(self, trainer: L.Trainer, name: str, value: float, sentence: str) -> None:
        line = f"step {trainer.global_step}: {name} is {value:.3g}: {sentence}"
        rank_zero_warn(line)
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / _FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"step": trainer.global_step, "metric": name, "value": value, "sentence": sentence}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def state_dict(self) -> dict[str, Any]:
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"recent": recent, "first": dict(self._first), "told": dict(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = {name: deque(values, self.window) for name, values in state["recent"].items()}
        self._first, self._told = dict(state["first"]), dict(state["told"])
