"""Stage: the root module, which owns the loop: objective, optimizer, schedule and every log line."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation.engine import generate
from bluelm_lightning.stages import metrics
from bluelm_lightning.stages.losses import linear_cross_entropy
from bluelm_lightning.stages.optim import AdamW, check_globs
from bluelm_lightning.stages.rng import every_rank, rng_state, set_rng_state
from bluelm_lightning.stages.schedules import Constant, Schedule
from bluelm_lightning.stages.sharding import gathered, shard
from bluelm_lightning.types import IGNORE, Encoded, Generation, ImageSpec, PackedBatch

log = logging.getLogger(__name__)

_UNIT = 1024.0  # labelled tokens; any constant will do that keeps the summed loss of a micro-batch near one


class Stage(L.LightningModule):
    """Next-token training of a vision-language model. Subclasses change the objective or the defaults.

    The mean over labelled tokens is exact: a step's gradient is that of one big batch, whatever the gradient
    accumulation, the number of processes, and the share of labelled tokens in each micro-batch.

    Args:
        vlm: the model.
        optimizer: builds the optimizer, groups by strict globs.
        schedule: factor of the learning rate by step.
        frozen: globs of parameters that do not train, such as ``vlm.vision.*``. One that matches nothing is an error.
        clip_norm: greatest global gradient norm; 0 = no clipping.
    """

    learns_from: str | None = None  # "documents", "pairs" or "prompts"; None: not compared with what the data gives

    def __init__(
        self,
        vlm: VisionLanguageModel,
        optimizer: AdamW | None = None,
        schedule: Schedule | None = None,
        frozen: list[str] | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__()
        if clip_norm < 0:
            raise ConfigError(f"{clip_norm} is negative; 0 switches clipping off", "model.clip_norm")
        self.vlm, self.clip_norm = vlm, clip_norm
        self.optimizer = optimizer or AdamW()
        self.schedule = schedule or Constant()
        self._freeze(frozen or [])
        self._labelled: Tensor | None = None
        self._factor: float | None = None
        self._window: dict[str, tuple[Any, Any]] = {}  # source -> sum and number of losses since the last log line
        self._held_out: dict[str, tuple[float, int]] = {}  # the same of this validation, where processes share it
        self._saved_rng: dict[str, Any] | None = None
        self.document_losses: tuple[Tensor, Tensor] | None = None

    # ------------------------------------------------------------------ what others may ask
    @property
    def image_spec(self) -> ImageSpec:
        return self.vlm.image_spec

    @property
    def vocab_size(self) -> int:
        return self.vlm.vocab_size

    def generate(self, prompts: list[Encoded], **sampling: Any) -> list[Generation]:
        """Continue prompts; see :func:`bluelm_lightning.generation.generate`. Leaves the module's mode as it was.

        Where weights are sharded every process must call it.
        """
        with gathered(self):
            return generate(self.vlm, prompts, tokenizer=self.trainer.datamodule.tokenizer, **sampling)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ sharding
    sharded_methods: tuple[str, ...] = ("training_step", "validation_step", "generate")  # that read weights

    def configure_model(self) -> None:
        """Called by Lightning once the processes run; see :func:`bluelm_lightning.stages.sharding.shard`."""
        shard(self, self.sharded_methods)

    # ------------------------------------------------------------------ loop
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        hidden, labels, docs = self.labelled(batch)
        scale = torch.full((len(labels),), self._scale(len(labels), hidden.device), device=hidden.device)
        loss, token_losses = linear_cross_entropy(hidden, self.vlm.decoder.output_weight, labels, scale)
        self._log_losses(token_losses, docs, batch, "train")
        return loss

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        hidden, labels, docs = self.labelled(batch)
        _, token_losses = linear_cross_entropy(hidden, self.vlm.decoder.output_weight, labels)
        self._log_losses(token_losses, docs, batch, "val")

    def _scale(self, count: int, device: Any) -> float:
        """Weight of each of ``count`` items in the sum of this micro-batch, so that the step is the mean over all.

        Micro-batches hold different numbers of items: sum now, divide once, before the optimizer step.
        """
        if self.trainer.accumulate_grad_batches * self.trainer.world_size == 1:
            return 1.0 / max(count, 1)
        items = torch.tensor(float(count), device=device)
        self._labelled = items if self._labelled is None else self._labelled + items
        return 1.0 / _UNIT

    def labelled(self, batch: PackedBatch, vlm: VisionLanguageModel | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states float[M, D], labels int64[M] and document numbers int64[M] of the positions that carry loss.

        Of this process's slice, where processes share a row.
        """
        strategy = getattr(self._trainer, "strategy", None)  # a stage computes its loss without a trainer too
        batch = self.vlm.slice_for(batch, getattr(strategy, "context_group", None))
        hidden = (vlm or self.vlm)(batch)
        places = (batch.labels.flatten() != IGNORE).nonzero().flatten()
        return hidden.flatten(0, 1)[places], batch.labels.flatten()[places], batch.segments.flatten()[places]

    def _log_losses(self, losses: Tensor, docs: Tensor, batch: PackedBatch, phase: str) -> None:
        """Mean loss, and mean loss of each source, over all labelled tokens since the last log line.

        Leaves in ``document_losses`` what the documents of the last training batch had: summed loss and number of
        labelled tokens, float32[D] each, for callbacks.
        """
        if phase == "train":
            each = torch.zeros(2, len(batch.sources), device=docs.device)
            pairs = torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
            each.index_add_(1, docs, pairs)
            self.document_losses = each[0], each[1]
        names = sorted(set(batch.sources))
        numbers = [names.index(source) for source in batch.sources]  # none in a batch of padding alone
        index = torch.tensor(numbers, dtype=torch.long, device=docs.device)[docs]
        sums = torch.zeros(len(names), device=docs.device).index_add_(0, index, losses)
        counts = torch.zeros_like(sums).index_add_(0, index, torch.ones_like(losses))
        if phase == "val":
            self._log_means(phase, dict(zip(names, zip(sums, counts))))
            return
        for name, total, count in zip(names, sums, counts):
            before = self._window.get(name, (0.0, 0.0))
            self._window[name] = (before[0] + total, before[1] + count)
        if self._logs_now():
            self._log_means(phase, self._window)
            self._window = {}

    def _log_means(self, phase: str, window: dict[str, tuple[Any, Any]]) -> None:
        means = {name: (total / count, int(count)) for name, (total, count) in window.items() if count}
        tokens = sum(count for _, count in means.values())
        if not tokens and (phase == "train" or self.trainer.world_size == 1):
            return
        # a process without labelled tokens still takes part in the mean over processes, or the others would wait for it
        loss = sum(mean * count for mean, count in means.values()) / max(tokens, 1)
        self.log(metrics.LOSS[phase], loss, batch_size=tokens, sync_dist=phase == "val")
        for name, (mean, count) in means.items():
            if phase == "val" and self.trainer.world_size > 1:
                total, before = self._held_out.get(name, (0.0, 0))
                self._held_out[name] = (total + float(mean) * count, before + count)
            else:
                self.log(metrics.source_loss(phase, name), mean, batch_size=count)

    def on_validation_epoch_end(self) -> None:
        """Each process saw some of the samples, and perhaps none of a source: the mean is over all of them."""
        if self.trainer.world_size == 1:
            return
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, self._held_out)
        self._held_out = {}
        for name in sorted({name for part in found for name in part}):
            totals, counts = zip(*(part[name] for part in found if name in part))
            self.log(metrics.source_loss("val", name), sum(totals) / sum(counts), batch_size=sum(counts))

    def _logs_now(self) -> bool:
        every = self.trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        step = self.global_step + 1
        return step % every == 0 or step in (1, self.trainer.max_steps)

    # ------------------------------------------------------------------ optimizer
    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        if getattr(self._trainer, "gradient_clip_val", None) is not None:
            reason = "is not followed, since the stage clips by the norm; take it away and set model.clip_norm"
            raise ConfigError(reason, "trainer.gradient_clip_val")
        optimizer = self.optimizer.build(self)
        scaler = getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None)
        if scaler and getattr(optimizer, "_step_supports_amp_scaling", False):
            text = "hides gradients from clipping and callbacks under 16-mixed; set it to false, or train in bf16-mixed"
            raise ConfigError(text, "model.optimizer.fused")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.value_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if self._labelled is not None:
            self._divide_gradients()
        if self.clip_norm and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm")
        elif self.clip_norm:  # not by Lightning, which refuses a fused optimizer in bf16-mixed, where nothing is scaled
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)

    def gradient_factor(self) -> float:
        """What turns the gradients of the backward passes, and their losses, into the mean over all labelled tokens.

        For callbacks that look before the optimizer step: the stage multiplies later, before it clips. 1 where
        gradients are that mean already. All processes must call it, as often as they like.
        """
        if self._labelled is None:
            return 1.0
        if self._factor is None:
            total = self._labelled
            if self.trainer.world_size > 1:
                total = self.trainer.strategy.reduce(total, reduce_op="sum")
            # they are the mean over micro-batches and ranks of sums
            parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
            self._factor = parts * _UNIT / max(float(total), 1.0)  # no label: they are zero
        return self._factor

    def _divide_gradients(self) -> None:
        factor = self.gradient_factor()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients:  # a callback may have taken them all away to skip the step
            torch._foreach_mul_(gradients, factor)
        self._labelled = self._factor = None

    def _freeze(self, globs: list[str]) -> None:
        check_globs(globs, [name for name, _ in self.named_parameters()], "model.frozen")
        for name, parameter in self.named_parameters():
            if any(fnmatchcase(name, glob) for glob in globs):
                parameter.requires_grad_(False)

    # ------------------------------------------------------------------ exact resume: Lightning does not save these
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = every_rank(rng_state())
        start = self.schedule.start_step
        checkpoint["schedule"] = {"start": start, "position": start + self.global_step}
        loop, parts = self.trainer.fit_loop.epoch_loop, self.trainer.accumulate_grad_batches
        open_ = 0 if loop.batch_progress.is_last_batch else loop.batch_progress.current.ready % parts
        if open_:  # each process has gradients of its own, as large as the model
            log.warning(
                "the checkpoint after step %d lacks the gradients of %d of the next %d micro-batches: a resume is not "
                "exact; save after whole steps (every_n_train_steps; val_check_interval: a multiple of %d)",
                self.global_step, open_, parts, parts,
            )  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.inherit(checkpoint.get("schedule", {}).get("start", 0))
        states = checkpoint.get("rng", [])
        self._saved_rng = states[self.global_rank] if len(states) == self.trainer.world_size else None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._saved_rng is not None:
            set_rng_state(self._saved_rng)  # as late as possible: loaders and sanity checks draw numbers too
            self._saved_rng = None
