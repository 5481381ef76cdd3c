"""Distillation: a student learns a teacher's distribution, live or from a cache, over text and image-text alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.components.weights import init_from
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.generation.engine import evaluating
from bluelm_lightning.generation.teacher_cache import TeacherCache, TeacherCacheWriter, document_key
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.distill_losses import DistillPlan, distillation_loss, teacher_distribution
from bluelm_lightning.stages.optim import AdamW
from bluelm_lightning.stages.schedules import Schedule
from bluelm_lightning.stages.sharding import check_context
from bluelm_lightning.types import IGNORE, PackedBatch


class DistillStage(Stage):
    """Next-token training against a teacher's distribution, mixed with cross-entropy.

    The teacher runs in this process, without gradients, or its likeliest tokens come from a cache that
    ``bluelm-cache`` wrote; then no teacher is in memory. Either way logits exist a chunk of positions at a time.
    The teacher is not in the checkpoints.

    Args:
        vlm: the student.
        teacher: the teacher, with the student's vocabulary.
        teacher_weights: checkpoint of the teacher.
        cache: folder of a cache, instead of a teacher.
        plan: divergence, temperature, weights.
        optimizer, schedule, frozen, clip_norm: as :class:`Stage`.

    Raises:
        ConfigError: not exactly one of teacher and cache, another vocabulary, or a cache of another temperature.

    Source: BlueLM-2.5-3B: pruned from a 7B teacher, distilled on 3T tokens and in a fast decay on 300B.
    """

    learns_from = "documents"

    def __init__(
        self,
        vlm: VisionLanguageModel,
        teacher: VisionLanguageModel | None = None,
        teacher_weights: str | None = None,
        cache: str | None = None,
        plan: DistillPlan | None = None,
        optimizer: AdamW | None = None,
        schedule: Schedule | None = None,
        frozen: list[str] | None = None,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__(vlm, optimizer, schedule, None, clip_norm)
        self.plan = plan or DistillPlan()
        if (teacher is None) == (cache is None):
            raise ConfigError("give either a teacher or a cache", "model.teacher")
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.cache = None if cache is None else TeacherCache(cache)
        self._check()
        if teacher is not None and teacher_weights is not None:
            init_from(teacher, teacher_weights)
        self.bridge = None
        if self.plan.hidden_weight and teacher is not None:
            self.bridge = nn.Linear(vlm.decoder.width, teacher.decoder.width, bias=False)
        self._freeze([*(frozen or [])])

    def _check(self) -> None:
        theirs = self.teacher if self.cache is None else self.cache
        assert theirs is not None
        if theirs.vocab_size != self.vocab_size:
            raise ConfigError(
                f"the teacher's vocabulary has {theirs.vocab_size} rows, the student's {self.vocab_size}; "
                "give both the same vocab_size",
                "model.teacher.decoder.vocab_size" if self.cache is None else "model.cache",
            )
        if self.cache is not None and self.cache.temperature != self.plan.temperature:
            raise ConfigError(
                f"the cache was written at temperature {self.cache.temperature}, the plan says "
                f"{self.plan.temperature}; make them equal",
                "model.plan.temperature",
            )
        if self.cache is not None and self.plan.hidden_weight:
            raise ConfigError("a cache holds no states; set it to 0 or give a teacher", "model.plan.hidden_weight")

    def configure_model(self) -> None:
        if self.cache is not None:
            check_context(self, "a cache holds whole documents")
        super().configure_model()

    def train(self, mode: bool = True) -> DistillStage:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    # ------------------------------------------------------------------ loop
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        hidden, labels, docs = self.labelled(batch)
        scale = self._scale(len(labels), hidden.device)
        states = self._teacher_states(batch)
        teacher = self._from_cache(batch) if states is None else self._live(states)
        weight = self.vlm.decoder.output_weight
        loss, losses, apart = distillation_loss(hidden, weight, labels, teacher, self.plan, scale)
        if self.bridge is not None and states is not None:
            distance = (self.bridge(hidden).float() - states.float()).square().mean(-1)
            loss = loss + self.plan.hidden_weight * scale * distance.sum()
        self._log_losses(losses, docs, batch, "train")
        if self._logs_now() and len(apart):
            self.log("train/divergence", apart.mean(), batch_size=len(apart))
        return loss

    @torch.no_grad()
    def _teacher_states(self, batch: PackedBatch) -> Tensor | None:
        """float[M, D_teacher] at labelled positions; None where a cache stands for the teacher."""
        if self.teacher is None:
            return None
        return self.labelled(batch, self.teacher)[0]

    def _live(self, states: Tensor) -> Callable[[slice], tuple[Tensor, Tensor]]:
        assert self.teacher is not None
        weight = self.teacher.decoder.output_weight.to(states.dtype)

        @torch.no_grad()
        def teacher(part: slice) -> tuple[Tensor, Tensor]:
            return teacher_distribution(states[part] @ weight.T, self.plan)

        return teacher

    def _from_cache(self, batch: PackedBatch) -> Callable[[slice], tuple[Tensor, Tensor]]:
        assert self.cache is not None
        none = torch.empty(0, self.cache.top_k)  # a process without documents left gets a batch of padding
        found = [(none.long(), none), *(self._rows(document) for document in documents(batch))]
        tokens, values = (torch.cat(parts).to(batch.ids.device) for parts in zip(*found))
        return lambda part: (tokens[part], values[part])

    def _rows(self, document: Document) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        where = f"sample {document.name}"
        tokens, values = self.cache.get(document.key, where)
        if len(tokens) != len(document.places):
            raise DataError(
                f"{len(tokens)} rows in the cache {self.cache.folder}, {len(document.places)} labelled places; "
                "write the cache again",
                where,
            )
        return tokens, values

    # ------------------------------------------------------------------ the teacher is not ours to save
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("teacher.")]:
            del state[key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.teacher is not None:
            own = {f"teacher.{name}": value for name, value in self.teacher.state_dict().items()}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}


class Document(NamedTuple):
    """A document of a batch, on the CPU."""

    name: str  # "shard-000001/17"
    key: str  # see document_key
    places: Tensor  # int64[M], labelled places in the flattened batch


def documents(batch: PackedBatch) -> Iterable[Document]:
    """The documents of a batch, in order; padding is none."""
    batch = batch.to("cpu", non_blocking=False)  # once, not for each document
    ids, labels, segments = batch.ids.flatten(), batch.labels.flatten(), batch.segments.flatten()
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        number = int(segments[start]) if end > start else -1
        if number >= 0:
            tiles = batch.tiles[batch.tile_segments == number]
            key = document_key(ids[start:end], labels[start:end], tiles)
            places = start + (labels[start:end] != IGNORE).nonzero().flatten()
            yield Document(batch.sample_ids[number], key, places)


def write_cache(
    teacher: VisionLanguageModel, batches: Iterable[PackedBatch], folder: str | Path, plan: DistillPlan
) -> int:
    """Write the teacher's ``plan.top_k`` likeliest tokens (0: all) for every document; returns their number.

    Args:
        teacher: on the device it computes on; used in evaluation mode.
        batches: packed documents, each at least once.
        folder: see :class:`TeacherCacheWriter`.
        plan: top_k and temperature.
    """
    top_k = min(plan.top_k or teacher.vocab_size, teacher.vocab_size)
    with TeacherCacheWriter(folder, top_k, plan.temperature, teacher.vocab_size) as writer:
        for batch in batches:
            cache_batch(writer, teacher, batch, plan)
            writer.commit()
    return len(writer.seen)


@torch.no_grad()
def cache_batch(
    writer: TeacherCacheWriter, teacher: VisionLanguageModel, batch: PackedBatch, plan: DistillPlan
) -> None:
    """Add the documents of a batch that the writer does not hold yet; arguments as for :func:`write_cache`."""
    new = [document for document in documents(batch) if document.key not in writer.seen]
    if not new:
        return
    device, weight = teacher.decoder.output_weight.device, teacher.decoder.output_weight
    rows = max(1, (64 << 20) // (4 * teacher.vocab_size))
    with evaluating(teacher):
        hidden = teacher(batch.to(device)).flatten(0, 1)
        for _, key, places in new:
            parts = [teacher_distribution(part @ weight.T, plan) for part in hidden[places.to(device)].split(rows)]
            tokens, values = (torch.cat(column) for column in zip(*parts))
            writer.add(key, tokens, values)
