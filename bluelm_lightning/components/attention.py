"""Attention inside each document of a packed row, as an attention function that any transformers causal LM can use.

A dense mask over a packed row costs the square of the row. Here the documents of a row are sorted into buckets of
similar length, each bucket is gathered into ``[documents, longest]`` and computed by one causal SDPA call. Its padding
needs no mask: a causal query never sees a later key. On CUDA in half precision one variable-length kernel call does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluelm_lightning.components.context import to_heads, to_tokens

ATTENTION_NAME = "bluelm_packed"
_BUCKET_FILL = 0.8  # a document joins a bucket if it is at least this share of the bucket's longest


@dataclass
class DocumentLayout:
    """Where the documents of a flattened row begin and end.

    Args:
        cu_seqlens: int32[D + 1], 0, then the end of each document.
        max_seqlen: length of the longest document.
        group: processes that share the row, each with a slice of its tokens; ``None``: this one holds it all.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    group: Any = None

    @cached_property
    def buckets(self) -> tuple[list[tuple[int, int]], Tensor, Tensor, Tensor]:
        """Shapes (documents, longest) of the buckets; ``take`` and ``valid`` [rows in buckets]; ``back`` [T]."""
        bounds = self.cu_seqlens.tolist()  # a device sync on CUDA, where the varlen kernel is used instead
        docs = sorted(((end - start, start) for start, end in pairwise(bounds)), reverse=True)
        groups: list[list[tuple[int, int]]] = []
        for length, start in docs:
            if groups and length >= _BUCKET_FILL * groups[-1][0][0]:
                groups[-1].append((length, start))
            elif length:
                groups.append([(length, start)])
        shapes = [(len(group), group[0][0]) for group in groups]
        offsets = [torch.arange(n * longest).view(n, longest) for n, longest in shapes]
        take = torch.empty(sum(n * longest for n, longest in shapes), dtype=torch.long)
        valid = torch.zeros_like(take, dtype=torch.bool)
        base = 0
        for group, (n, longest), offset in zip(groups, shapes, offsets):
            lengths = torch.tensor([length for length, _ in group])[:, None]
            starts = torch.tensor([start for _, start in group])[:, None]
            inside = torch.arange(longest)[None] < lengths
            take[base + offset] = torch.where(inside, starts + torch.arange(longest)[None], starts)
            valid[base + offset] = inside
            base += n * longest
        back = torch.empty(bounds[-1], dtype=torch.long)
        back[take[valid]] = torch.arange(len(take))[valid]
        device = self.cu_seqlens.device
        return shapes, take.to(device), valid.to(device), back.to(device)


class _Gather(torch.autograd.Function):
    """Rows into buckets. The backward pass is a gather too: index_add would cost several times as much."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, take: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Scatter(torch.autograd.Function):
    """Buckets back into rows. Padding gets a zero gradient, so that it does not reach any key."""

    @staticmethod
    def forward(ctx: Any, bucketed: Tensor, take: Tensor, valid: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(take, valid)
        return bucketed.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        take, valid = ctx.saved_tensors
        return grads[0].index_select(0, take).masked_fill_(~valid[:, None], 0), None, None, None


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def _last_keys(mask: Tensor, window: int) -> Tensor:
    """Of a mask that shows each query its first keys, only the last ``window`` of them."""
    return mask & (torch.arange(mask.shape[-1], device=mask.device) >= mask.sum(-1, keepdim=True) - window)


def _bucketed(q: Tensor, k: Tensor, v: Tensor, layout: DocumentLayout, window: int | None, **sdpa: Any) -> Tensor:
    """q [T, H, d], k and v [T, H, d] -> [T, H, d]."""
    shapes, take, valid, back = layout.buckets
    heads, width = q.shape[1:]
    rows = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=1)
    outputs = []
    for (n, longest), part in zip(shapes, _Gather.apply(rows, take, back).split([n * m for n, m in shapes])):
        qb, kb, vb = part.view(n, longest, 3, heads, width).permute(2, 0, 3, 1, 4)
        banded = window is not None and window < longest
        mask = _window_mask(longest, window, q.device) if banded and window else None
        out = F.scaled_dot_product_attention(qb, kb, vb, attn_mask=mask, is_causal=mask is None, **sdpa)
        outputs.append(out.transpose(1, 2).reshape(n * longest, heads * width))
    return _Scatter.apply(torch.cat(outputs), take, valid, back).view(-1, heads, width)


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: DocumentLayout, window: int | None, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = layout.cu_seqlens, layout.max_seqlen
    window_size = (window - 1 if window else -1, 0)
    return varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=window_size)  # type: ignore[return-value]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: DocumentLayout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function in transformers' interface: query [B, H, T, d] -> ([B, T, H, d], None).

    With ``layout`` (training, prefill) attention is causal inside each document of the flattened ``B * T`` row;
    without it (decoding) ``attention_mask: bool[B, 1, T, S]`` says which first keys each query sees.

    Raises:
        ValueError: neither came through the model (it would look into the future), or it wants soft caps or sinks.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__} uses soft caps or sinks, which this attention does not compute")
    if layout is None and attention_mask is None:
        raise ValueError(f"{type(module).__name__} passes neither the layout of a packed row nor a mask on")
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings leave queries and keys in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if layout is not None and layout.group is not None:
        return _shared(module, query, key, value, layout, scaling, dropout, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if layout is None:
        if attention_mask is not None and sliding_window is not None:
            attention_mask = _last_keys(attention_mask, sliding_window)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return out.transpose(1, 2), None
    batch, heads, length, width = query.shape
    q, k, v = (x.transpose(1, 2).reshape(batch * length, heads, width) for x in (query, key, value))
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and not dropout:
        out = _varlen(q, k, v, layout, sliding_window, scaling)
    else:
        out = _bucketed(q, k, v, layout, sliding_window, scale=scaling, dropout_p=dropout)
    return out.view(batch, length, heads, width), None


def _shared(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, *settings: Any
) -> Tensor:
    """The same where a row is shared: query [1, H, n, d] of a slice -> [1, n, H, d]."""
    q, k, v = (to_heads(x[0].transpose(0, 1), layout.group).transpose(0, 1)[None] for x in (query, key, value))
    alone = DocumentLayout(layout.cu_seqlens, layout.max_seqlen)
    scaling, dropout, window = settings
    out, _ = packed_attention(module, q, k, v, None, scaling, dropout, alone, window)
    return to_tokens(out[0], layout.group)[None]


def register_attention() -> str:
    """Make ``packed_attention`` known to transformers under the returned name.

    No mask function is registered on purpose: transformers would see the restarting positions and build a dense mask.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    return ATTENTION_NAME
