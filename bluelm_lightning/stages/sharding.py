"""FSDP2: every process holds a share of each weight and gathers a block's weights while the block computes.

The groups that are gathered together: each block of a tower or decoder, each projector, and the root with all the rest
(embeddings, heads, norms). The root's group is whole during the *whole* of a registered method, ``training_step`` say:
so a loss may read ``decoder.output_weight`` outside of the decoder's forward, and embeddings may be tied to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from bluelm_lightning.components.base import Component
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages.sharded_strategy import ShardedStrategy


def shard(stage: Any, methods: tuple[str, ...]) -> None:
    """Shard a stage in place, if its trainer's strategy is a :class:`ShardedStrategy`; else do nothing.

    The weights are those of process 0: it sends them a group at a time, so that the others may have been built on the
    meta device and never hold more than their shares and one group.

    Args:
        stage: with a trainer attached.
        methods: of the stage, in which weights are read; each is entered by all processes or by none.

    Raises:
        ConfigError: the strategy shards, but is not ours: its checkpoints would not fit the rest of the library.
    """
    strategy = stage.trainer.strategy
    if isinstance(stage, FSDPModule) or not hasattr(strategy, "device_mesh"):
        return
    if not isinstance(strategy, ShardedStrategy):
        raise ConfigError(
            f"{type(strategy).__name__} would write checkpoints that no later stage can read; "
            "give class_path: bluelm_lightning.stages.ShardedStrategy",
            "trainer.strategy",
        )
    for part in stage.modules():
        if isinstance(part, VisionLanguageModel):
            _check_heads(part, strategy.context_parallel)
            part.lockstep = True
    device = strategy.root_device
    mesh = init_device_mesh(device.type, (strategy.world_size,))
    for block in blocks(stage):
        _share_out(block, mesh, device)
    _share_out(stage, mesh, device)
    for name in methods:
        register_fsdp_forward_method(stage, name)


def blocks(stage: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one at a time, innermost components only."""
    components = [part for part in stage.modules() if isinstance(part, Component)]
    return [block for part in components for block in part.blocks()]


def _share_out(module: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """The weights of process 0 to all, then each keeps its share."""
    made: dict[Tensor, Tensor] = {}  # by identity: tied weights are one tensor before and after
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None and not hasattr(tensor, "full_tensor"):
                    if tensor not in made:
                        made[tensor] = _received(tensor, device)
                    held[name] = made[tensor]  # type: ignore[assignment]
    fully_shard(module, mesh=mesh)


def _received(tensor: Tensor, device: torch.device) -> Tensor:
    value = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device).contiguous()
    dist.broadcast(value, src=0)
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def gather(stage: nn.Module) -> None:
    """Whole weights on every process until :func:`release`; every process must call it, inside a registered method.

    For decoding: processes write different numbers of tokens, so they cannot gather a block for each.
    """
    for part in stage.modules():
        if isinstance(part, FSDPModule) and part is not stage:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def release(stage: nn.Module) -> None:
    """Back to shares. Does nothing where nothing was gathered."""
    for part in stage.modules():
        if isinstance(part, FSDPModule) and part is not stage:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


@contextmanager
def gathered(stage: nn.Module) -> Iterator[None]:
    gather(stage)
    try:
        yield
    finally:
        release(stage)


def _check_heads(vlm: VisionLanguageModel, size: int) -> None:
    heads = vlm.decoder.cache_shape()[1]
    if heads % size:
        raise ConfigError(
            f"{heads} key-value heads cannot be shared by {size} processes; give a divisor of {heads}",
            "trainer.strategy.context_parallel",
        )


def check_context(stage: Any, reason: str) -> None:
    """Raises ConfigError where processes share a row, for a stage that needs whole rows."""
    if getattr(stage.trainer.strategy, "context_parallel", 1) > 1:
        raise ConfigError(
            f"{reason}, {type(stage).__name__} cannot share rows; set it to 1", "trainer.strategy.context_parallel"
        )


def refuse(stage: Any, reason: str, key: str) -> None:
    """Raises ConfigError where the strategy shards; for what does not work then."""
    if isinstance(stage.trainer.strategy, ShardedStrategy):
        raise ConfigError(reason, key)
