"""ShardedStrategy: Lightning's ModelParallelStrategy for FSDP2 whose checkpoints are those of one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from bluelm_lightning.errors import ConfigError


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and optimizer state are shared out over all processes (FSDP2).

    A checkpoint is one file with whole tensors, as one process or DDP writes it: the next stage, ``load_run`` and a
    resume read it without executing anything in it, which a folder of shards would need. Each process gathers one
    tensor at a time; process 0 holds them all in host memory while it writes.

    Args:
        context_parallel: processes that share one packed row (see ``components/context.py``); 1 = none do. It must
            divide the number of processes and the decoder's key-value heads.
        process_group_backend: default: by the device.

    Raises:
        ConfigError: the number of processes is no multiple of ``context_parallel``.
    """

    def __init__(self, context_parallel: int = 1, process_group_backend: str | None = None) -> None:
        if context_parallel < 1:
            raise ConfigError(f"{context_parallel} is below 1", "trainer.strategy.context_parallel")
        super().__init__("auto", context_parallel, False, process_group_backend)
        self.context_parallel = context_parallel

    def setup_environment(self) -> None:
        world = self.num_nodes * self.num_processes
        if world % self.context_parallel:
            raise ConfigError(
                f"{world} processes cannot form groups of {self.context_parallel}; give a divisor of {world}",
                "trainer.strategy.context_parallel",
            )
        self._data_parallel_size = world // self.context_parallel
        super().setup_environment()

    @property
    def context_group(self) -> Any:
        """The processes that share this one's rows; None: it shares none."""
        return self.device_mesh["tensor_parallel"].get_group() if self.context_parallel > 1 else None

    # ------------------------------------------------------------------ whole tensors out: every process must call
    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._whole(optimizer.state_dict())

    def _whole(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Whole tensors on the CPU, on process 0; tied ones share memory as in an ordinary state dict."""
        seen: dict[int, Tensor] = {}

        def whole(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            full = value.full_tensor() if isinstance(value, DTensor) else value  # of tied ones too, by every process
            if not self.is_global_zero:
                return None
            local = value.to_local() if isinstance(value, DTensor) else value
            return seen.setdefault(local.data_ptr() or id(value), full.detach().cpu())

        gathered = tree_map(whole, tree)
        return gathered if self.is_global_zero else {}

    # ------------------------------------------------------------------ each process takes its shares in
    @property
    def lightning_restore_optimizer(self) -> bool:  # its parent reads the optimizer in load_checkpoint; this one below
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_file():
            raise ConfigError(f"{path} is no checkpoint of one file; give one that this library wrote", "--ckpt_path")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        if own.keys() != saved.keys():
            differ = sorted(own.keys() ^ saved.keys())
            raise ConfigError(
                f"{differ[0]} is on one side only; use the configuration it was saved with", "--ckpt_path"
            )
        for name, tensor in own.items():
            with torch.no_grad():
                tensor.copy_(_shares(saved[name], tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"]):
            ids = [number for group in saved["param_groups"] for number in group["params"]]
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {key: _shares(value, parameter) for key, value in saved["state"][number].items()}
                for number, parameter in zip(ids, own, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})


def _shares(whole: Any, like: Tensor) -> Any:
    """This process's share of ``whole``, cut as ``like`` is; what has another shape (a step counter) stays."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    if not isinstance(whole, Tensor) or whole.shape != like.shape:
        return whole
    # src_data_rank=None: everyone has read the file, nothing is sent
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
