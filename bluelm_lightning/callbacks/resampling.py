"""KeyDataResampling: the shares of the sources follow what the run learns from them."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from bluelm_lightning.callbacks import names
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Prompt, SharePolicy


class KeyDataResampling(L.Callback):
    """Key data resampling, as we define it: **draw more often, and at most so often, what still teaches the most**.

    After every step the loss of each document goes into a ledger (in reinforcement learning the pass rate of each
    prompt), with how often and when it was seen. Every ``every_n_steps`` steps a policy makes shares of the sources out
    of the ledger; ``max_repeats`` of a source bounds how often any of its samples is seen. The ledger is one file that
    goes from stage to stage, so limits, losses and pass rates hold across them.

    The report names the method and does not define it. What it shows, and what here stands for it: shares of STEM,
    code, reasoning and long data rise over the stages (``FixedSchedule``); long chains of thought are repeated 9 times
    against 3 (``max_repeats``); small sets are up-sampled (``InverseFrequency``). ``LearningProgress``, ``ExcessLoss``
    and ``PassRateBand`` are our choice for what the report decides by hand. Measured (claims 8 and 9 of
    ``docs/REPRODUCTION.md``): with ``ExcessLoss`` a stage that adds a new source to learnt ones reaches a held-out loss
    in fewer tokens than with equal shares; where all sources are new it does not. ``PassRateBand`` raises the share of
    groups that teach.

    Logged: ``resampling/share/SOURCE`` and ``resampling/epochs/SOURCE``. In the run folder: ``resampling.md``, a table
    of the sources with their effective epochs and of the most repeated samples, and ``resampling.png``, the shares over
    the tokens trained on. ``docs/RESAMPLING.md`` has the whole.

    A decision holds from a fixed number of steps later on (``data.lag``), so it does not depend on what was fetched
    ahead; ledger and decisions are in the checkpoint, and all processes decide by the same figures.

    Args:
        policy: ledger -> shares. One of ``FixedSchedule``, ``InverseFrequency``, ``LearningProgress``, ``ExcessLoss``,
            ``PassRateBand``, or a ``SharePolicy`` of your own.
        every_n_steps: optimizer steps between two decisions.
        ledger: its file, written with every checkpoint and at the end; default: none, the run begins with an empty one.

    Raises:
        ConfigError: a number below 1, another callback that moves the shares, a ledger of other sources or one that
            cannot be written, or a stage that gives neither losses of documents nor pass rates.
    """

    def __init__(self, policy: SharePolicy, every_n_steps: int = 100, ledger: str | None = None) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"{every_n_steps} is below 1", "trainer.callbacks.KeyDataResampling.every_n_steps")
        self.policy, self.every_n_steps, self.ledger = policy, every_n_steps, ledger
        self.resampler: Any = None  # of the data module
        self._step = 0
        self._epochs: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.ledger is not None:
            unfit = _why_unfit(Path(self.ledger)) if trainer.is_global_zero else ""
            unfit = trainer.strategy.broadcast(unfit)  # all stop, or the others would wait for the first
            if unfit:
                raise ConfigError(f"{unfit}; name a file in a folder that can be written", "trainer.callbacks.ledger")
        run = str(Path(trainer.default_root_dir).absolute())
        self.resampler = trainer.datamodule.resample(self.policy, self.ledger, run)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if hasattr(pl_module, "scored"):
            self._observe_rates(pl_module)
        else:
            self._observe_losses(trainer, pl_module, batch)
        stepped = trainer.global_step > self._step
        if stepped and trainer.global_step % self.every_n_steps == 0:
            self.resampler.decide(trainer.global_step)
            self._show(trainer)
        shares = self.resampler.value_at(trainer.datamodule.turn(self._step))  # type: ignore[attr-defined]
        values = {names.resampling_share(name): share for name, share in shares.items()}
        values |= {names.resampling_epochs(name): epochs for name, epochs in self._epochs.items()}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def _observe_losses(self, trainer: L.Trainer, stage: Any, batch: Any) -> None:
        losses = getattr(stage, "document_losses", None)
        if losses is None:
            kind = type(stage).__name__
            raise ConfigError(f"{kind} gives no losses of documents; take KeyDataResampling away", "trainer.callbacks")
        segments = batch.segments.flatten()
        tokens = torch.bincount(segments[segments >= 0], minlength=len(batch.refs))
        if trainer.global_rank % getattr(trainer.strategy, "context_parallel", 1):
            tokens = torch.zeros_like(tokens)  # those that share rows hold the same batch: the first of them counts it
        self.resampler.observe(self._step, batch.refs, *losses, tokens)

    def _observe_rates(self, stage: Any) -> None:
        """Every prompt that was asked since the last batch, also where nothing was learnt from the answers."""
        for scored in stage.collected:
            prompts: dict[int, Prompt] = {item.rollout.group: item.rollout.prompt for item in scored}
            rates = stage.pass_rates(scored)
            refs = [prompt.ref for prompt in prompts.values()]
            self.resampler.observe_rates(self._step, refs, [rates.get(group, math.nan) for group in prompts])

    def _show(self, trainer: L.Trainer) -> None:
        self._epochs = {row["source"]: row["epochs"] for row in self.resampler.rows}
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "resampling.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.resampler.page(), encoding="utf-8")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.resampler.gather()
        self._show(trainer)
        if not trainer.is_global_zero:
            return
        self.resampler.save()
        try:
            self.resampler.draw(Path(trainer.default_root_dir) / "resampling.png")
        except ImportError:
            rank_zero_warn("resampling.png is not drawn: matplotlib is not installed (pip install matplotlib)")

    # ------------------------------------------------------------------ exact resume
    def state_dict(self) -> dict[str, Any]:
        state = self.resampler.state_dict() if self.resampler is not None else {}
        return {"resampler": state, "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resampler.load_state_dict(state["resampler"])
        self._epochs = dict(state["epochs"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.resampler.gather()
        if trainer.is_global_zero:
            self.resampler.save()


def _why_unfit(path: Path) -> str:
    """Why no ledger can be written there, empty if it can: found before training, not when the first is saved."""
    try:
        if path.is_dir():
            return f"{path} is a folder"
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):  # a ledger is written beside its old file
            return ""
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})"
