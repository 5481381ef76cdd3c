"""Memory of a long row: the benchmark's count is that of real tensors, and grows little where it should."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import TINY_LM, tiny_decoder

from bluelm_lightning.components.attention import DocumentLayout

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "long_context.py"
DECODER = {"architecture": "llama", "config": {**TINY_LM, "num_hidden_layers": 3}, "vocab_size": 4096}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("long_context", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DOCUMENT = 64
    return module


def test_fakes_are_counted_like_real_tensors(benchmark):
    layout = DocumentLayout(torch.arange(0, 257, 64, dtype=torch.int32), 64)
    layout.buckets  # noqa: B018 - not counted, as in the benchmark
    model = tiny_decoder(config=DECODER["config"], vocab_size=4096)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with benchmark.Alive() as alive:
        benchmark.step(model, layout, 256, chunked=True)
    assert benchmark.peak_of(DECODER, 256, chunked=True, checkpointing=False) == pytest.approx(alive.peak, rel=0.02)
    assert alive.peak > 256 * 3 * 10 * 32 * 2  # bytes: at least ten bf16 states a layer


def test_checkpointing_and_the_chunked_loss_bound_what_a_token_costs(benchmark):
    def per_token(*switches: bool) -> float:
        short, long = (benchmark.peak_of(DECODER, length, *switches) for length in (4096, 8192))
        return (long - short) / 4096

    neither, both = per_token(False, False), per_token(True, True)
    assert neither > 2 * 4 * 4096  # bytes: float32 logits and their gradient
    assert both < neither / 4  # what is left: the input of each block, and one block of three that is computed again
