"""What a model can do after a stage: held-out documents, scored without generating."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bluelm_lightning.components.text import LanguageModel
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data.packing import choose_rows, pack
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import IGNORE, Encoded, PackedBatch, Sample

_ROW = 2560  # tokens; the longest held-out document fits


@dataclass
class Probe:
    """Scores of held-out documents.

    Args:
        loss: mean over their labelled tokens, in nats.
        exact: share of documents whose every labelled token is the likeliest one: what greedy decoding would write.
        count: documents.
        tokens: share of labelled tokens that are the likeliest one.
    """

    loss: float
    exact: float
    count: int
    tokens: float


def probe(vlm: VisionLanguageModel, encoder: Any, samples: Iterable[Sample]) -> Probe:
    """Score samples; those that the model cannot read (pictures, for a text model) are left out."""
    losses, right = document_scores(vlm, encoder, samples)
    tokens = sum(count for _, count in losses) or 1
    whole = sum(hits == count for hits, (_, count) in zip(right, losses))
    return Probe(sum(loss for loss, _ in losses) / tokens, whole / max(len(right), 1), len(right), sum(right) / tokens)


@torch.no_grad()
def document_scores(
    vlm: VisionLanguageModel, encoder: Any, samples: Iterable[Sample]
) -> tuple[list[tuple[float, int]], list[int]]:
    """(summed loss, labelled tokens), and how many of them are the likeliest one, of each document in order."""
    was = vlm.training
    vlm.eval()
    documents = list(_encoded(encoder, samples))
    if isinstance(vlm, LanguageModel):
        documents = [doc for doc in documents if not len(doc.tiles)]
    scores: dict[str, tuple[float, int, int]] = {}
    for batch in _batches(documents):
        hidden = vlm(batch).flatten(0, 1)
        places = (batch.labels.flatten() != IGNORE).nonzero().flatten()
        labels, owners = batch.labels.flatten()[places], batch.segments.flatten()[places]
        logits = (hidden[places] @ vlm.decoder.output_weight.T).float()
        losses, hits = cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels
        for number, name in enumerate(batch.sample_ids):
            mine = owners == number
            scores[name] = (float(losses[mine].sum()), int(mine.sum()), int(hits[mine].sum()))
    vlm.train(was)
    ordered = [scores[doc.id] for doc in documents]
    return [(loss, count) for loss, count, _ in ordered], [hit for _, _, hit in ordered]


def _encoded(encoder: Any, samples: Iterable[Sample]) -> Iterable[Encoded]:
    for number, sample in enumerate(samples):
        try:
            doc = encoder(sample)
        except DataError:
            continue
        if len(doc) <= _ROW:
            doc.id = f"{number}"  # ids are unique within a source only
            yield doc


def _batches(documents: Sequence[Encoded]) -> Iterable[PackedBatch]:
    left = list(documents)
    while left:
        rows = choose_rows([len(doc) for doc in left], [len(doc.tiles) for doc in left], 1, _ROW)
        yield pack([[left[i] for i in row] for row in rows], _ROW, 0)
        taken = {i for row in rows for i in row}
        left = [doc for i, doc in enumerate(left) if i not in taken]
