"""A stage resumed: random numbers go on, and a checkpoint says where it is not exact."""

import random
import re

import lightning as L
import numpy as np
import torch
from test_stage import WHOLE, Watch, fit
from tiny import tiny_vlm

from bluelm_lightning.stages import AdamW, SFTStage


def test_dropout_goes_on_exactly_after_a_resume(tmp_path):
    def stage():
        return SFTStage(tiny_vlm(config={"attention_dropout": 0.5}), AdamW(lr=1e-2))

    whole, first, second = stage(), stage(), stage()
    watch, resumed = Watch(save_after=2, path=tmp_path / "mid.ckpt"), Watch()
    fit(tmp_path, whole, [WHOLE] * 4, callbacks=[watch])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(987)
    fit(tmp_path, second, [WHOLE] * 4, ckpt_path=tmp_path / "mid.ckpt", callbacks=[resumed])
    assert resumed.drawn == watch.drawn[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))
    torch.manual_seed(987)
    fit(tmp_path, first, [WHOLE] * 4)  # another stream gives other weights, or the lines above prove nothing
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), first.parameters()))


def test_a_checkpoint_amid_an_accumulation_says_what_it_lacks(tmp_path, caplog):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "some.ckpt")

    fit(tmp_path, SFTStage(tiny_vlm()), [WHOLE] * 7, accumulate_grad_batches=3, callbacks=[Save()])
    told = re.findall(r"after step (\d) lacks the gradients of (\d) of the next 3 micro-batches", caplog.text)
    assert told == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
