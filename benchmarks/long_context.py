"""Peak memory of a training step against the length of the row: what checkpointing and the chunked loss save at 32K.

    python benchmarks/long_context.py

The decoder of ``3b/long_context.yaml`` in bf16-mixed, one row of documents of 4,096 tokens. Tensors are fakes: every
operation runs on shapes alone, and what is alive is counted, so a row of 32K needs seconds and no memory. Counted is
what comes on top of parameters and their gradients (both float32) and of the optimizer's state: activations, logits,
and autocast's bf16 copies of the weights. What a kernel needs inside itself is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bluelm_lightning.cli.config_files import PACKAGED
from bluelm_lightning.components import CausalDecoder
from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.stages.losses import linear_cross_entropy, reference_cross_entropy

LENGTHS, DOCUMENT = (4096, 8192, 16384, 32768), 4096
CASES = ((False, False), (True, False), (True, True))  # chunked loss, checkpointing
GIB = 2**30


def main() -> None:
    settings = yaml.safe_load((PACKAGED / "3b" / "long_context.yaml").read_text())
    decoder = settings["model"]["init_args"]["vlm"]["init_args"]["decoder"]["init_args"]
    print("{:>6} {:>12} {:>14} {:>19} {:>15}".format("row", "neither", "chunked loss", "and checkpointing", "ratio"))
    for length in LENGTHS:
        peaks = [peak_of(decoder, length, *case) for case in CASES]
        told = [f"{peak / GIB:.1f} GiB" for peak in peaks]
        print("{:>6} {:>12} {:>14} {:>19} {:>14.1f}x".format(length, *told, peaks[0] / peaks[2]), flush=True)


def peak_of(decoder: dict[str, Any], length: int, chunked: bool, checkpointing: bool) -> int:
    """Bytes at the peak of a forward and backward pass, above parameters and gradients."""
    layout = DocumentLayout(torch.arange(0, length + 1, DOCUMENT, dtype=torch.int32), DOCUMENT)
    layout.buckets  # noqa: B018 - from real numbers, before they are fakes
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = CausalDecoder(**{**decoder, "gradient_checkpointing": checkpointing})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Alive() as alive:
            step(model, layout, length, chunked)
    return alive.peak


def step(model: CausalDecoder, layout: DocumentLayout, length: int, chunked: bool) -> None:
    ids = torch.zeros(1, length, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(model.embed(ids), ids, layout=layout).flatten(0, 1)
        if chunked:
            loss: Tensor = linear_cross_entropy(hidden, model.output_weight, ids.flatten())[0]
        else:
            loss = reference_cross_entropy(hidden, model.output_weight, ids.flatten())
    loss.backward()


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made inside and are still alive; ``peak`` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._add(storage)
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self.now += size

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)


if __name__ == "__main__":
    main()
