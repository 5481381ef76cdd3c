"""The meter and Throughput."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from callback_runs import SAMPLES, Clock
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import random_doc, tiny_vlm

from bluelm_lightning.callbacks import GradNorms, SampleTable, Throughput, names
from bluelm_lightning.callbacks.meter import Meter, paused
from bluelm_lightning.data.packing import pack
from bluelm_lightning.stages.base import Stage

pytest_plugins = ["callback_runs"]


def test_meter_counts_by_hand():
    # Two rows of 16: 10 + 6 tokens and 8 tokens, so 24 of 32 places are used: padding 8 / 32
    docs = [random_doc(10, tiles=1, seed=1), random_doc(6, seed=2), random_doc(8, seed=3)]
    batch = pack([docs[:2], docs[2:]], 16, 0)
    meter = Meter()
    meter.begin_batch()
    meter.end_batch(batch)
    reading = meter.read()
    labelled = 5 + 5 + 7  # of 10 tokens 4 are visual and the last has no successor
    assert reading[2:] == (24, labelled, 32, 1, 3)
    assert reading.padding_share == 0.25
    assert meter.read()[2:] == (0, 0, 0, 0, 0)
    assert meter.read().padding_share == 0.0
    meter.end_batch(batch)
    assert meter.peek()[2:] == meter.peek(lambda counts: counts)[2:] == (24, labelled, 32, 1, 3)


def test_meter_clock_counts_training_and_waiting_for_data_only():
    clock, batch = Clock(), pack([[random_doc(8)]], 8, 0)
    meter = Meter(clock)

    def at(time, event, *args):
        clock.time = time
        event(*args)

    at(10, meter.begin_batch)
    at(12, meter.end_batch, batch)  # 2
    at(13, meter.begin_batch)  # 1 waiting for data
    at(15, meter.end_batch, batch)  # 2
    at(15.5, meter.stop)  # validation: what ran since the batch does not count
    at(40, meter.begin_batch)
    at(41, meter.stop)  # 1; samples are written in the middle of a step
    at(50, meter.resume)
    at(53, meter.end_batch, batch)  # 3
    assert meter.seconds == 2 + 1 + 2 + 1 + 3


def test_processes_that_share_rows_count_them_once():
    """Four processes, two of which share each batch."""
    strategy = SimpleNamespace(context_parallel=2, reduce=lambda counts, reduce_op: counts * 4)
    callback = Throughput()
    callback.setup(SimpleNamespace(world_size=4, strategy=strategy), None, "fit")
    assert callback._sum(torch.tensor([3, 5])).tolist() == [6, 10]
    del strategy.context_parallel
    assert callback._sum(torch.tensor([3, 5])).tolist() == [12, 20]


def test_paused_stops_running_meters_only():
    clock, first, second = Clock(), Throughput(), Throughput()
    first.meter, second.meter = Meter(clock), Meter(clock)
    first.meter.begin_batch()
    with paused(SimpleNamespace(callbacks=[first, second, L.Callback()])):
        clock.time += 100
    clock.time += 1
    first.meter.end_batch(pack([[random_doc(8)]], 8, 0))
    assert first.meter.seconds == 1
    assert not second.meter.running


def test_throughput_leaves_out_validation_checkpoints_and_samples(fit, tmp_path):
    clock = Clock()

    class Timed(Stage):
        def training_step(self, batch, batch_idx):
            clock.time += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.time += 100
            super().validation_step(batch, batch_idx)

        def generate(self, prompts, **sampling):
            clock.time += 1000
            return super().generate(prompts, **sampling)

        def on_save_checkpoint(self, checkpoint):
            clock.time += 10_000
            super().on_save_checkpoint(checkpoint)

    throughput = Throughput()
    throughput.meter = Meter(clock)
    # before and after: in the first the generation falls between the step and the end of the meter's batch
    tables = [SampleTable(2, 1, 2, [False]) for _ in range(2)]
    run = fit(
        tables[0], throughput, tables[1], ModelCheckpoint(tmp_path, every_n_train_steps=3), steps=5,
        stage=Timed(tiny_vlm()), val=SAMPLES[:2], val_check_interval=2, enable_checkpointing=True,
    )  # fmt: skip
    assert clock.time > 10_000 + 2 * 2 * 1000 + 2 * 100
    assert run.recorder.column(names.STEP_SECONDS) == [1.0] * 5
    rows = [row for _, row in run.recorder.rows if names.TOKENS_PER_SECOND in row]
    tokens = [row[names.TOKENS_PER_SECOND] for row in rows]  # one second each
    assert [row[names.TOKENS_SEEN] for row in rows] == [sum(tokens[: n + 1]) for n in range(5)]
    assert [row[names.PADDING_SHARE] for row in rows] == pytest.approx([1 - count / 96 for count in tokens])


def test_throughput_is_one_row_with_the_loss(fit):
    run = fit(Throughput(), GradNorms(), steps=4, log_every_n_steps=2)
    expected = {
        names.TOKENS_PER_SECOND, names.LABELLED_PER_SECOND, names.TILES_PER_SECOND, names.STEP_SECONDS,
        names.PADDING_SHARE, names.TOKENS_SEEN, names.SAMPLES_SEEN, names.norm("grad", "vision"), "train/loss",
    }  # fmt: skip
    assert [step for step, _ in run.recorder.rows] == [1, 3]
    assert all(expected <= set(metrics) for _, metrics in run.recorder.rows)
    each = fit(Throughput(), steps=4)
    assert run.recorder.column(names.TOKENS_SEEN) == each.recorder.column(names.TOKENS_SEEN)[1::2]


def test_totals_go_on_after_a_resume(fit, tmp_path):
    whole = fit(Throughput(), steps=6)
    # the checkpoint of step 3 lies between two logging steps: what was not read yet must be in it
    save = ModelCheckpoint(tmp_path, filename="at3", every_n_train_steps=3)
    throughput = Throughput()
    fit(throughput, save, steps=3, enable_checkpointing=True, log_every_n_steps=2)
    resumed = fit(throughput, steps=6, ckpt_path=str(tmp_path / "at3.ckpt"))  # the same one: it must not count twice
    for name in (names.TOKENS_SEEN, names.SAMPLES_SEEN):
        assert resumed.recorder.column(name) == whole.recorder.column(name)[3:]
    assert whole.recorder.column(names.TOKENS_SEEN)[-1] > 6 * 48


def test_totals_are_exact_where_float32_would_round(fit):
    throughput = Throughput()
    throughput.load_state_dict({"tokens": 2**40 + 1, "samples": 0})
    run = fit(throughput, steps=1)
    assert run.recorder.column(names.TOKENS_SEEN) == [throughput.state_dict()["tokens"]]
    assert throughput.state_dict()["tokens"] % 2**17  # the step of float32 there


def test_throughput_counts_each_micro_batch(fit):
    once = fit(Throughput(), steps=4)
    twice = fit(Throughput(), steps=2, accumulate_grad_batches=2)
    assert twice.recorder.column(names.TOKENS_SEEN) == once.recorder.column(names.TOKENS_SEEN)[1::2]
