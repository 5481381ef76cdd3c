"""KVCache: keys and values of a batch of sequences of different lengths."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys and values, right-padded: [rows, heads, capacity, width].

    Transformers layers call :meth:`update`. While prefilling, the packed row passes through and is kept; after
    :meth:`unpack`, every update writes one token a row at that row's own length.

    Args:
        layers: number of layers.
    """

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.lengths: Tensor | None = None  # int64[rows], tokens held
        self.longest = 0  # of the lengths; attention looks no further

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.lengths is None:
            self.keys[layer], self.values[layer] = keys, values
            return keys, values
        rows = torch.arange(len(self.lengths), device=keys.device)
        self.keys[layer][rows, :, self.lengths] = keys[:, :, 0]
        self.values[layer][rows, :, self.lengths] = values[:, :, 0]
        end = self.longest + 1
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def get_seq_length(self, layer: int = 0) -> int:
        return 0  # positions and masks are always given

    def mask(self) -> Tensor:
        """bool[rows, 1, 1, longest + 1]: the keys that the next token of each row sees, itself included."""
        assert self.lengths is not None
        places = torch.arange(self.longest + 1, device=self.lengths.device)
        return (places[None] <= self.lengths[:, None])[:, None, None]

    def advance(self) -> None:
        """Every row has got one token."""
        assert self.lengths is not None
        self.lengths, self.longest = self.lengths + 1, self.longest + 1

    def unpack(self, bounds: list[int], room: int, copies: int = 1) -> None:
        """From one packed row [1, H, T, d] to ``copies`` right-padded rows a document, with ``room`` for new tokens."""
        lengths = [end - start for start, end in pairwise(bounds)]
        for store in (self.keys, self.values):
            for layer, flat in enumerate(store):
                out = flat.new_zeros(len(lengths), copies, flat.shape[1], max(lengths) + room, flat.shape[3])
                for row, (start, length) in enumerate(zip(bounds, lengths)):
                    out[row, :, :, :length] = flat[0, :, start : start + length]
                store[layer] = out.flatten(0, 1)
        self.lengths = torch.tensor(lengths, device=self.keys[0].device).repeat_interleave(copies)
        self.longest = max(lengths)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        assert self.lengths is not None
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]
        self.longest = int(self.lengths.max())
