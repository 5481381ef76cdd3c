"""Claim 9: a band of pass rates raises the share of groups that teach something."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import torch

from bluelm_lightning.callbacks import KeyDataResampling
from bluelm_lightning.components import CausalDecoder
from bluelm_lightning.components.text import LanguageModel
from bluelm_lightning.data.ledger import PassRateLedger
from bluelm_lightning.data.policies import PassRateBand
from bluelm_lightning.datamodules import PromptDataModule, SFTDataModule, SourceSpec
from bluelm_lightning.generation import Sampling
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab
from bluelm_lightning.reproduce.prepare import ready_tokenizer
from bluelm_lightning.rl.rewards import ExactMatch, RewardRouter
from bluelm_lightning.stages import AdamW, Constant, Muon, RLStage, RolloutPlan, SFTStage
from bluelm_lightning.types import Sample

_TAUGHT_STEPS, _RL_STEPS = 400, 40
_LENGTHS = (1, 2, 3, 4, 6)  # operands: the first are always solved, the last never

CLAIM = Claim(
    number=9,
    claim="In reinforcement learning a band of pass rates makes more groups teach something than uniform drawing.",
    report="key data resampling is among what makes its data efficient; it is not defined.",
    baseline="informative groups under uniform drawing, %",
    unit="points",
    tried=f"A model of 0.2M parameters learns sums of 1 to 4 digits for {_TAUGHT_STEPS} steps, and then by GRPO for "
    f"{_RL_STEPS} collections of 16 prompts and 8 rollouts, from a pool of 410 sums of {', '.join(map(str, _LENGTHS))} "
    "digits, as many of each length. Ours draws with PassRateBand over lengths and PassRateLedger over prompts, "
    "the other uniformly. A group is informative when its rewards differ. The mean is over all collections, those "
    "included in which nothing is known yet. Steps and pool were chosen on seed 100, which is not among the seeds. "
    "Three seeds alone gave 11.6 points (7.5 to 15.7) on one machine and 9.69 (-3.4 to 22.8) on another, whose sums "
    "round differently; so there are eight.",
)
_SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 160, "vocab_size": 1088, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "initializer_range": 0.06,
}  # fmt: skip


def sums(operands: int, count: int, seed: int) -> list[Sample]:
    """Questions such as ``3+5+1=?`` about digits, with the answer alone."""
    rng, out = Random(f"{operands} {seed}"), []
    for n in range(count):
        terms = [rng.randrange(10) for _ in range(operands)]
        answer = str(sum(terms))
        turns: list[Any] = [{"role": "user", "content": f"{'+'.join(map(str, terms))}=?"}]
        turns.append({"role": "assistant", "content": answer})
        out.append(Sample(f"sum-{operands}-{seed}-{n}", f"sums_{operands}", turns, task="sums", answer=answer))
    return out


def measure(lab: Lab, seed: int) -> Measured:
    """Share of informative groups over all collections of a short run, under both ways of drawing."""
    torch.set_num_threads(1)
    tokenizer, folder = str(ready_tokenizer(lab.root)), lab.root / f"seed_{seed}" / "bands"
    policy = _taught(tokenizer, folder, seed)
    uniform = _informative(policy, tokenizer, folder, seed, banded=False)
    banded = _informative(policy, tokenizer, folder, seed, banded=True)
    ours, baseline = (100 * sum(shares) / len(shares) for shares in (banded, uniform))
    later = [100 * sum(shares[len(shares) // 2 :]) / len(shares[len(shares) // 2 :]) for shares in (banded, uniform)]
    details = {"later half, band, %": later[0], "later half, uniform, %": later[1]}
    return Measured(ours, baseline, ours - baseline, details)


def _taught(tokenizer: str, folder: Path, seed: int) -> LanguageModel:
    """A small model after a short supervised stage: sure of short sums, lost in long ones."""
    torch.manual_seed(seed)
    policy = LanguageModel(CausalDecoder("llama", _SHAPE))
    stage = SFTStage(policy, Muon(lr=3e-3), Constant(warmup_steps=10))
    specs = [SourceSpec(source=sums(n, 10 if n == 1 else 2000, seed), name=f"sums_{n}", weight=1) for n in (1, 2, 3, 4)]
    data = SFTDataModule(tokenizer, specs, row_tokens=512, num_workers=0, seed=seed)
    _fit(stage, data, folder, _TAUGHT_STEPS)
    return policy


def _informative(policy: LanguageModel, tokenizer: str, folder: Path, seed: int, banded: bool) -> list[float]:
    """By collection, the share of groups whose rollouts have different rewards."""
    stage = RLStage(
        copy.deepcopy(policy),
        RewardRouter({"correct": ExactMatch()}),
        sampling=Sampling(6, 1.0),
        plan=RolloutPlan(group_size=8, batch_size=32),
        optimizer=AdamW(lr=1e-4, weight_decay=0.0),
    )
    sources = {f"sums_{n}": sums(n, 10 if n == 1 else 100, seed + 1000) for n in _LENGTHS}
    specs = [SourceSpec(source=made, name=name, weight=1, thinking_share=0.0) for name, made in sources.items()]
    ledger = PassRateLedger() if banded else None
    data = PromptDataModule(tokenizer, specs, prompts_per_step=16, num_workers=0, seed=seed, ledger=ledger)
    shares = _Shares()
    resampling = [KeyDataResampling(PassRateBand(floor=0.1), every_n_steps=5)] if banded else []
    L.seed_everything(seed, verbose=False)
    _fit(stage, data, folder, _RL_STEPS, shares, *resampling)
    return shares.found


class _Shares(L.Callback):
    """Share of informative groups of each collection."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.found.append(1.0 - float(trainer.callback_metrics["rollout/zero_variance"]))


def _fit(stage: L.LightningModule, data: L.LightningDataModule, folder: Path, steps: int, *callbacks: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(stage, data)
