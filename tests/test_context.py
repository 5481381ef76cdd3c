"""Context parallelism on two processes: one row shared by both gives the losses and weights of one process."""

import os
from types import SimpleNamespace

import pytest
import torch
from processes import in_ranks, run_processes
from test_stage import DOCS, trainer_of
from tiny import tiny_tokenizer, tiny_vlm, worst
from tiny_data import Talks, Texts

from bluelm_lightning.callbacks import KeyDataResampling
from bluelm_lightning.components.context import cut
from bluelm_lightning.data.packing import pack
from bluelm_lightning.data.policies import InverseFrequency
from bluelm_lightning.datamodules import SFTDataModule, SourceSpec
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages import DPOStage, SFTStage, ShardedStrategy
from bluelm_lightning.stages.sharding import _check_heads

SCENARIOS = ["sgd", "text", "untied", "muon", "distill"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    run_processes("sharded_runs.py", str(folder), "1", "none", *SCENARIOS, folder=folder, count=1)
    run_processes("sharded_runs.py", str(folder), "2", "context", *SCENARIOS, folder=folder)

    def read(name: str, run: str):
        path = folder / f"{name}-{run}.ckpt"
        return torch.load(path.with_suffix(".losses")), torch.load(path, weights_only=True)["state_dict"]

    return read


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_shared_row_has_the_losses_and_gradients_of_one_process(runs, name):
    """The middle of the row is inside of a document and of a picture. ``sgd``: weights differ as gradients do."""
    (losses, weights), (wanted, one) = runs(name, "context-2"), runs(name, "none-1")
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(wanted, rel=1e-5)  # worst seen 3.4e-7
    assert max(worst(weights[key], one[key], floor=1e-3) for key in one) < 2e-5  # worst seen 3.4e-6


def group(rank: int, size: int = 2):
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def test_slices_cover_the_batch_and_tiles_are_shared_out():
    batch = pack([DOCS], 128, 0)
    slices = [cut(batch, group(rank)) for rank in (0, 1)]
    for key in ("ids", "labels", "positions", "segments"):
        assert torch.equal(torch.cat([getattr(part, key) for part in slices], 1), getattr(batch, key))
    places = torch.cat([slices[0].image_positions, slices[1].image_positions + 64])
    assert torch.equal(places, batch.image_positions)
    assert all(len(part.image_positions) for part in slices)
    assert torch.equal(torch.cat([part.features for part in slices]), torch.arange(12))
    assert [len(part.tiles) for part in slices] == [2, 2]  # of three; one is blank
    assert torch.equal(torch.cat([part.tiles for part in slices])[:3], batch.tiles)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(
        ConfigError, match=r"data.row_tokens: 128 tokens of a batch do not divide by context_parallel=3"
    ):
        cut(pack([DOCS], 128, 0), group(0, 3))
    with pytest.raises(ConfigError, match=r"context_parallel: 2 key-value heads cannot be shared by 4 processes"):
        _check_heads(tiny_vlm(), 4)
    stage = DPOStage(tiny_vlm())
    stage.__dict__["_trainer"] = SimpleNamespace(strategy=SimpleNamespace(context_parallel=2))
    with pytest.raises(ConfigError, match=r"context_parallel: an answer is judged as a whole, DPOStage cannot share"):
        stage.configure_model()


def test_the_ledger_counts_a_shared_row_once(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def run(**options):
        sources = [SourceSpec(source=Talks(40)), SourceSpec(source=Texts(40))]
        fixed = {"row_tokens": 96, "batch_rows": 2, "num_workers": 0}
        data = SFTDataModule(str(tmp_path / "tokenizer"), sources, **fixed)
        resampling = KeyDataResampling(InverseFrequency(), 2, str(tmp_path / f"{len(options)}.npz"))
        stage = SFTStage(tiny_vlm(config={"tie_word_embeddings": True}))
        trainer_of(tmp_path, max_steps=4, callbacks=[resampling], **options).fit(stage, datamodule=data)
        return resampling.resampler

    def shared(rank):
        os.environ["LOCAL_RANK"] = str(rank)
        held = run(devices=2, strategy=ShardedStrategy(2, "gloo"), use_distributed_sampler=False).state_dict()
        torch.save(held, tmp_path / f"{rank}.pt")

    one = run().state_dict()
    in_ranks(shared, tmp_path)
    for rank in (0, 1):
        held = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert held["history"] == one["history"], "tokens by source until each decision"
        for table, wanted in zip(held["ledger"]["rows"], one["ledger"]["rows"]):
            assert torch.equal(table["seen"], wanted["seen"])
            # where no batch has a picture, one process leaves the vision encoder out and two decay its weights
            assert torch.allclose(table["loss"], wanted["loss"], rtol=1e-3)
