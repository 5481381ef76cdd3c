"""VisionLanguageModel: the one place where tokens meet pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.components.base import Component, Decoder, Projector, VisionEncoder
from bluelm_lightning.components.context import ContextSlice, cut, gather_rows
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import ImageSpec, PackedBatch


class VisionLanguageModel(Component):
    """A vision tower, a projector and a decoder.

    ``forward(batch) -> hidden float[B, T, D]``:

    1. count: the batch holds Q image positions for each of its N tiles, or the sample is named;
    2. embed the ids: [B, T, D];
    3. tiles through tower and projector: [N, 3, S, S] -> [N, P, D_vit] -> [N, Q, D];
    4. put the N * Q features where ``image_positions`` points;
    5. the decoder, with attention inside each document.

    Args:
        vision: the tower.
        projector: from the tower's width to the decoder's.
        decoder: the language model.

    Raises:
        ConfigError: when two widths do not fit, or the projector does not say its own; from ``forward`` when the
            projector's output is not what it says.
    """

    lockstep = False  # every process must run the tower on every batch, evaluation included: its weights are sharded

    def __init__(self, vision: VisionEncoder, projector: Projector, decoder: Decoder) -> None:
        super().__init__()
        for name, wanted, owner in (
            ("vision_dim", vision.width, "vision tower"),
            ("decoder_dim", decoder.width, "decoder"),
        ):
            given = getattr(projector, name, None)
            if given is None:
                kind = type(projector).__name__
                raise ConfigError(f"{kind} sets no {name}; set self.{name} in its __init__", "model.vlm.projector")
            if given != wanted:
                raise ConfigError(
                    f"the projector has {name}={given} but the {owner} is {wanted} wide; set {name}: {wanted}",
                    f"model.vlm.projector.{name}",
                )
        self.vision, self.projector, self.decoder = vision, projector, decoder

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(self.vision.image_size, self.projector.num_tokens(self.vision.num_patches))

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    def forward(self, batch: PackedBatch, cache: Any = None) -> Tensor:
        embeds = self.embed(batch)
        layout = DocumentLayout(batch.cu_seqlens, batch.max_seqlen, getattr(batch, "group", None))
        return self.decoder(embeds, batch.positions, layout=layout, cache=cache)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Steps 1 to 4: what the decoder reads, float[B, T, D]."""
        if not isinstance(batch, ContextSlice):
            self._count(batch)
        return self._place(self.decoder.embed(batch.ids), batch)

    def encode_images(self, tiles: Tensor) -> Tensor:
        """tiles: uint8[N, 3, S, S] -> float[N, Q, D]."""
        dtype = next(self.vision.parameters()).dtype
        features = self.projector(self.vision(tiles.to(dtype) / 255))
        wanted = (self.image_spec.tokens_per_tile, self.decoder.width)
        if tuple(features.shape[1:]) != wanted:
            raise ConfigError(
                f"{type(self.projector).__name__} gives {tuple(features.shape[1:])} for a tile, but by its num_tokens "
                f"and decoder_dim that is {wanted}; correct its forward or what it says",
                "model.vlm.projector",
            )
        return features

    def _place(self, embeds: Tensor, batch: PackedBatch) -> Tensor:
        tiles = batch.tiles
        if not len(tiles):
            together = torch.distributed.is_available() and torch.distributed.is_initialized()
            if not ((together and (self.training or self.lockstep)) or self._learns_from_pictures_alone()):
                return embeds
            # Every rank must run the tower, or gradient reduction would wait for this one forever; and a loss that
            # reaches no weight that trains has no gradient at all.
            size = self.vision.image_size
            blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=embeds.device)
            return embeds + 0.0 * self.encode_images(blank).sum().to(embeds.dtype)
        features = self.encode_images(tiles).flatten(0, 1).to(embeds.dtype)
        if isinstance(batch, ContextSlice):
            features = gather_rows(features, batch.group)[batch.features]
        flat = embeds.flatten(0, 1).index_copy(0, batch.image_positions, features)
        return flat.view_as(embeds)

    def _learns_from_pictures_alone(self) -> bool:
        """Whether gradients are wanted, the decoder is frozen, and some of the tower or projector trains."""
        if not torch.is_grad_enabled() or any(p.requires_grad for p in self.decoder.parameters()):
            return False
        return any(p.requires_grad for part in (self.vision, self.projector) for p in part.parameters())

    def slice_for(self, batch: PackedBatch, group: Any) -> PackedBatch:
        """What this process of ``group`` computes of a batch that the whole group holds; None: all of it."""
        if group is None:
            return batch
        self._count(batch)
        return cut(batch, group)

    def _count(self, batch: PackedBatch) -> None:
        per_tile = self.image_spec.tokens_per_tile
        positions, tiles = batch.image_positions.numel(), len(batch.tiles)
        owners = batch.segments.flatten()[batch.image_positions]
        if positions == tiles * per_tile and torch.equal(owners, batch.tile_segments.repeat_interleave(per_tile)):
            return
        held, owned = owners.tolist(), batch.tile_segments.tolist()
        for doc, sample_id in enumerate(batch.sample_ids):
            tokens, doc_tiles = held.count(doc), owned.count(doc)
            if tokens != doc_tiles * per_tile:
                raise DataError(
                    f"{tokens} image tokens but {doc_tiles} tiles x {per_tile} = {doc_tiles * per_tile} features; "
                    f"encode it with tokens_per_tile={per_tile}",
                    f"sample {sample_id}",
                )
        raise DataError(
            f"the batch holds {positions} image tokens and {tiles} tiles x {per_tile} features, not in the same order; "
            "build it with bluelm_lightning.data.packing.pack"
        )
