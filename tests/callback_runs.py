"""Runs of a tiny stage over samples in memory: fixtures and helpers shared by the tests of callbacks."""

import io
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from tiny import question, tiny_tokenizer, tiny_vlm

from bluelm_lightning.callbacks import (
    TrainingProgress,
)
from bluelm_lightning.datamodules.base import MultimodalDataModule
from bluelm_lightning.datamodules.sources import SourceSpec
from bluelm_lightning.stages.base import Stage
from bluelm_lightning.stages.optim import AdamW

SAMPLES = [question(f"what is {n}?", "yes" * (n % 3 + 1), images=n % 2, id=f"s{n}") for n in range(12)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


class Recorder(Logger):
    """Keeps each row that Lightning would send to a tracker."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "recorder", 0

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def column(self, name):
        return [metrics[name] for _, metrics in self.rows if name in metrics]


@pytest.fixture
def fit(tmp_path, tokenizer_folder):
    """Trains a tiny stage; every piece can be replaced."""

    def run(
        *callbacks,
        steps=4,
        stage=None,
        samples=SAMPLES,
        val=None,
        ckpt_path=None,
        folder=tmp_path,
        max_repeats=None,
        **options,
    ):
        torch.manual_seed(0)
        stage = stage or Stage(tiny_vlm(), AdamW(lr=1e-3))
        val_sources = [SourceSpec(source=val, name="held_out")] if val else None
        data = MultimodalDataModule(
            tokenizer_folder, [SourceSpec(source=samples, name="tiny", max_repeats=max_repeats)], val_sources,
            row_tokens=48, batch_rows=2, num_workers=0,
        )  # fmt: skip
        recorder = Recorder()
        bar = any(isinstance(callback, TrainingProgress) for callback in callbacks)
        settings = {"logger": recorder, "enable_checkpointing": False, "log_every_n_steps": 1, **options}
        trainer = L.Trainer(
            accelerator="cpu", max_steps=steps, callbacks=list(callbacks), default_root_dir=folder,
            enable_progress_bar=bar, enable_model_summary=False, num_sanity_val_steps=0, **settings,
        )  # fmt: skip
        trainer.fit(stage, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
        return SimpleNamespace(trainer=trainer, stage=stage, data=data, recorder=recorder)

    return run


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """Makes stdout a terminal of 100 columns, recorded. Called in the test: pytest swaps stdout after a fixture."""

    def open_screen():
        out = Screen()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        return out

    return open_screen


class Clock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time
