"""Attention over a packed row: per document, one dense mask, and one padded row a document, in one interleaved run.

    python benchmarks/attention.py

Prints CPU seconds of a forward and backward pass (one thread, median of interleaved rounds) and the ratio, which is
what holds between machines.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch
import torch.nn.functional as F

from bluelm_lightning.components.attention import DocumentLayout, packed_attention

HEADS, WIDTH, ROUNDS = 6, 64, 7


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print(f"{'row':>6} {'documents':>10} {'per document':>14} {'dense mask':>12} {'padded':>10} {'dense / ours':>13}")
    for row in (1024, 2048, 4096):
        lengths = torch.empty(row).log_normal_(4.9, 0.7, generator=generator).clamp(30, 600).long().cumsum(0)
        bounds = [0, *lengths[lengths < row].tolist(), row]
        ours, dense, padded = _compare(bounds)
        print(f"{row:>6} {len(bounds) - 1:>10} {ours:>13.4f}s {dense:>11.4f}s {padded:>9.4f}s {dense / ours:>12.1f}x")


def _compare(bounds: list[int]) -> list[float]:
    row = bounds[-1]
    lengths = [end - start for start, end in pairwise(bounds)]
    layout = DocumentLayout(torch.tensor(bounds, dtype=torch.int32), max(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (documents[:, None] == documents[None]).tril()
    packed = [torch.randn(1, HEADS, row, WIDTH, requires_grad=True) for _ in range(3)]
    padded = [torch.randn(len(lengths), HEADS, max(lengths), WIDTH, requires_grad=True) for _ in range(3)]
    variants = [
        lambda: packed_attention(torch.nn.Identity(), *packed, None, layout=layout)[0],
        lambda: F.scaled_dot_product_attention(*packed, attn_mask=mask),
        lambda: F.scaled_dot_product_attention(*padded, is_causal=True),
    ]
    seconds: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for kept, variant in zip(seconds, variants):
            start = time.process_time()
            variant().sum().backward()
            kept.append(time.process_time() - start)
    return [statistics.median(kept) for kept in seconds]


if __name__ == "__main__":
    main()
