"""Claim 7: what a picture costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean, median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

TILES = tuple(range(1, 17))  # the report: a grid of at most 4 x 4
SQUARES = (1, 2, 3, 4)  # sides of the square grids among them
TILE, ROUNDS = 64, 5

CLAIM = Claim(
    number=7,
    claim="The cost of a picture grows linearly with its tiles.",
    report="tiles run through the tower independently and in parallel, so its cost grows linearly.",
    baseline="the same tower over the whole picture at once (1, 4, 9 and 16 tiles of area), R2 of the linear fit",
    unit="R2",
    bar=0.99,
    tried="Forward and backward pass of tower and adapter over 1 to 16 tiles of 64 px, 256 patches each (the "
    "report: 729). Floating-point operations, counted, decide: the gain is the R2 of their linear fit over "
    "tiles. CPU seconds stand beside them: process time of one thread, the numbers of tiles interleaved, "
    f"medians of {ROUNDS} rounds.",
)


class Seer(nn.Module):
    """Tower and adapter: float[N, 3, S, S] -> float[N, Q, D]."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        from timm.layers import set_fused_attn

        from bluelm_lightning.components import MLPProjector, ViTEncoder

        set_fused_attn(False)  # the counter does not know the fused kernel of CPUs
        shape = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 3}
        try:
            self.vision = ViTEncoder(image_size=image_size, shape=shape)
        finally:
            set_fused_attn(True)
        self.projector = MLPProjector(vision_dim=64, decoder_dim=64)

    def cost(self, images: torch.Tensor) -> None:
        """One pass forward and backward."""
        self.zero_grad()
        self.projector(self.vision(images)).square().mean().backward()

    def flops(self, images: torch.Tensor) -> float:
        """Floating-point operations of one pass."""
        with FlopCounterMode(display=False) as counter:
            self.cost(images)
        return float(counter.get_total_flops())


def measure(lab: Lab, seed: int) -> Measured:
    torch.manual_seed(seed)
    seer = Seer(TILE)
    batches = [torch.rand(count, 3, TILE, TILE) for count in TILES]
    flops = [seer.flops(images) for images in batches]
    whole = [Seer(TILE * side).flops(torch.rand(1, 3, TILE * side, TILE * side)) for side in SQUARES]
    seconds: list[list[float]] = [[] for _ in TILES]
    for _ in range(ROUNDS + 1):
        for taken, images in zip(seconds, batches):
            started = time.process_time()
            seer.cost(images)
            taken.append(time.process_time() - started)
    cpu = [median(taken[1:]) for taken in seconds]  # the first round warms up
    details = {
        "GFLOP of 1 tile": flops[0] / 1e9,
        "of 16": flops[-1] / 1e9,
        "of 16 as one picture": whole[-1] / 1e9,
        "CPU seconds of 1 tile": cpu[0],
        "of 16 tiles": cpu[-1],
        "R2 of CPU seconds": fit(TILES, cpu),
    }
    ours = fit(TILES, flops)
    return Measured(ours, fit([side * side for side in SQUARES], whole), ours, details)


def fit(x: Sequence[float], y: Sequence[float]) -> float:
    """R2 of the least-squares line through (x, y)."""
    middle_x, middle_y = fmean(x), fmean(y)
    both = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y))
    spread_x, spread_y = sum((a - middle_x) ** 2 for a in x), sum((b - middle_y) ** 2 for b in y)
    return both**2 / (spread_x * spread_y)
