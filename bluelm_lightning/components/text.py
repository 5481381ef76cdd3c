"""LanguageModel: a decoder alone, for the stages that see no picture yet."""

from __future__ import annotations

from torch import Tensor

from bluelm_lightning.components.base import Component, Decoder
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import ImageSpec, PackedBatch


class LanguageModel(VisionLanguageModel):
    """A :class:`VisionLanguageModel` without tower and projector; what it learns goes on as their ``decoder``::

        bluelm-fit --config joint.yaml --init_from decoder=runs/text/checkpoints/last.ckpt

    Args:
        decoder: the language model.

    Raises:
        DataError: naming the sample, when a batch holds a picture.
    """

    def __init__(self, decoder: Decoder) -> None:
        Component.__init__(self)
        self.decoder = decoder

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(tile_size=1, tokens_per_tile=1)  # the data needs some; `embed` refuses what comes of it

    def embed(self, batch: PackedBatch) -> Tensor:
        """float[B, T, D], from token ids alone."""
        if len(batch.tiles):
            sample = batch.sample_ids[int(batch.tile_segments[0])]
            raise DataError("has a picture, the model reads text alone; choose VisionLanguageModel", f"sample {sample}")
        return self.decoder.embed(batch.ids)
