"""Context parallelism: G processes share a batch, each holding a slice of its tokens and encoding some of its tiles.

Outside of attention every token is computed on one process. Inside, an exchange turns "my slice, all heads" into "all
tokens, my heads", so attention sees whole documents: it is exact for packed rows and for any attention kernel.
Source: DeepSpeed-Ulysses (Jacobs et al. 2023). Shapes: T tokens of the flattened batch, n = T / G of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import PackedBatch


@dataclass(kw_only=True)
class ContextSlice(PackedBatch):
    """This process's part of a batch.

    ``ids``, ``labels``, ``positions`` and ``segments`` are [1, n]; ``cu_seqlens`` and ``max_seqlen`` are those of the
    whole batch; ``tiles`` are this process's, equally many on each (blank ones added); ``image_positions`` are the
    places in the slice that take a feature.
    """

    group: Any  # dist.ProcessGroup
    features: Tensor  # int64[K], which row of the gathered features each of the K image positions takes


def cut(batch: PackedBatch, group: Any) -> ContextSlice:
    """The slice of ``batch`` for this process; all processes of the group hold the same batch.

    Raises:
        ConfigError: the tokens of the batch cannot be divided evenly.
    """
    size, rank, total = group.size(), group.rank(), batch.ids.numel()
    if total % size:
        raise ConfigError(f"{total} tokens of a batch do not divide by context_parallel={size}", "data.row_tokens")
    start, end = rank * total // size, (rank + 1) * total // size
    flat = {key: getattr(batch, key).flatten()[None, start:end] for key in ("ids", "labels", "positions", "segments")}
    inside = (batch.image_positions >= start) & (batch.image_positions < end)
    share = -(-len(batch.tiles) // size)  # tiles of a process; the gathered features keep the order of the tiles
    tiles = batch.tiles[rank * share : (rank + 1) * share]
    blank = tiles.new_zeros(share - len(tiles), *batch.tiles.shape[1:])
    return ContextSlice(
        **flat,
        **{key: getattr(batch, key) for key in ("cu_seqlens", "max_seqlen", "tile_segments", "sample_ids", "sources")},
        tiles=torch.cat([tiles, blank]),
        image_positions=batch.image_positions[inside] - start,
        cursor=batch.cursor,
        group=group,
        features=inside.nonzero().flatten(),
    )


class _Exchange(torch.autograd.Function):
    """[G, ...]: part j goes to process j. Its own adjoint."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = parts.contiguous()
        out = torch.empty_like(parts)
        dist.all_to_all_single(out, parts, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(grads[0], ctx.group), None


class _Gather(torch.autograd.Function):
    """[K, D] of each process -> [G * K, D] on all; gradients are summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(group.size())]
        dist.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(ctx.group.size())[ctx.group.rank()], None


def gather_rows(rows: Tensor, group: Any) -> Tensor:
    """float[K, D] of each process -> float[G * K, D], differentiable."""
    return _Gather.apply(rows, group)


def to_heads(tokens: Tensor, group: Any) -> Tensor:
    """[n, H, d] of a slice -> [T, H / G, d] of the whole batch; heads stay in order."""
    n, heads, width = tokens.shape
    parts = tokens.view(n, group.size(), heads // group.size(), width).transpose(0, 1)
    return _Exchange.apply(parts, group).flatten(0, 1)


def to_tokens(heads: Tensor, group: Any) -> Tensor:
    """The way back: [T, H / G, d] -> [n, H, d]."""
    total, count, width = heads.shape
    parts = _Exchange.apply(heads.view(group.size(), total // group.size(), count, width), group)
    return parts.transpose(0, 1).flatten(1, 2)
