"""Stages under a real Trainer: exact gradients, clipping, schedules, logs, random states, two processes, learning."""

import random

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from processes import run_processes
from tiny import prompt, question, random_doc, tiny_encoder, tiny_tokenizer, tiny_vlm, worst

from bluelm_lightning.callbacks.monitors import l2_norm
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import generate
from bluelm_lightning.stages import AdamW, PretrainStage, SFTStage, Stage, WarmupCosine
from bluelm_lightning.types import IGNORE, PackedBatch

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")
Gradients = list[dict[str, torch.Tensor]]


class Recorder(AdamW):
    """SGD that keeps the gradients of each step: Adam's step would hide their length, and weights round them."""

    def build(self, module):
        self.taken: Gradients = []
        named = list(module.named_parameters())
        optimizer = torch.optim.SGD([p for _, p in named], lr=1.0)
        optimizer.register_step_post_hook(
            lambda *args: self.taken.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        )
        return optimizer


def trainer_of(folder, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    machine = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False, "default_root_dir": folder}
    return L.Trainer(**{**quiet, **machine, "max_epochs": 1, **options})


def loader(batches: list[PackedBatch]):
    return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


def fit(folder, stage: Stage, batches: list[PackedBatch], validation=None, ckpt_path=None, **options) -> L.Trainer:
    trainer = trainer_of(folder, **options)
    trainer.fit(stage, loader(batches), loader(validation) if validation else None, ckpt_path=ckpt_path)
    return trainer


def gradients_of(folder, batches: list[PackedBatch], clip_norm: float = 0.0, **options) -> Gradients:
    recorder = Recorder()
    fit(folder, SFTStage(tiny_vlm(), recorder, clip_norm=clip_norm), batches, **options)
    return recorder.taken


def gap(mine: Gradients, wanted: Gradients) -> float:
    """Of each tensor, relative to its largest value and at least to a thousandth of the largest of all."""
    assert len(mine) == len(wanted) > 0
    out = 0.0
    for a, b in zip(mine, wanted):
        assert a.keys() == b.keys()
        floor = 1e-3 * max(float(g.abs().max()) for g in b.values())
        out = max(out, *(worst(a[name], b[name], floor) for name in b))
    return out


def moved(stage: Stage) -> set[str]:
    before = dict(type(stage)(tiny_vlm()).named_parameters())
    return {name for name, p in stage.named_parameters() if not torch.equal(p, before[name])}


DOCS = [  # from all labels to none; with and without images
    random_doc(30, 1, 1),
    random_doc(28, 0, 2, labelled=0.1, source="text"),
    random_doc(25, 2, 3, labelled=0.5),
    random_doc(26, 0, 4, labelled=0.0, source="text"),
]
WHOLE = pack([[doc] for doc in DOCS], 32, 0)
PIECES = [pack([[doc]], 32 + 3 * n, 0) for n, doc in enumerate(DOCS)]  # of different sizes, padding included


@pytest.fixture(scope="module")
def one_big_batch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    return {clip_norm: gradients_of(folder, [WHOLE], clip_norm) for clip_norm in (0.0, 0.01)}


# ---------------------------------------------------------------- exact gradients
def loss_of(vlm) -> torch.Tensor:
    logits = vlm(WHOLE) @ vlm.decoder.output_weight.T
    return F.cross_entropy(logits.flatten(0, 1), WHOLE.labels.flatten())


def test_one_step_is_the_gradient_of_the_mean_over_labelled_tokens(one_big_batch):
    vlm = tiny_vlm()
    loss_of(vlm).backward()
    wanted = {f"vlm.{name}": p.grad for name, p in vlm.named_parameters()}
    assert gap(one_big_batch[0.0], [wanted]) < 1e-5  # worst seen 4.1e-7
    clipped = torch.cat([g.flatten() for g in one_big_batch[0.01][0].values()])
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-4)
    whole = torch.cat([g.flatten() for g in wanted.values()])
    assert worst(clipped, whole * 0.01 / whole.norm()) < 1e-5  # worst seen 1.7e-6: torch adds 1e-6 to the norm


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_accumulation_equals_one_big_batch(order, clip_norm, one_big_batch, tmp_path):
    mine = gradients_of(tmp_path, [PIECES[n] for n in order], clip_norm, accumulate_grad_batches=4)
    assert gap(mine, one_big_batch[clip_norm]) < 1e-5  # worst seen 1.4e-6


def test_an_accumulation_cut_short_by_the_epoch_is_exact_too(one_big_batch, tmp_path):
    mine = gradients_of(tmp_path, PIECES, accumulate_grad_batches=7)
    assert gap(mine, one_big_batch[0.0]) < 1e-5  # worst seen 1.4e-6


def test_the_count_starts_anew_with_each_step(tmp_path):
    """Two steps of two micro-batches equal two steps of the joined batches."""
    joined = gradients_of(tmp_path, [pack([[DOCS[0]], [DOCS[1]]], 32, 0), pack([[DOCS[2]], [DOCS[3]]], 32, 0)])
    assert gap(gradients_of(tmp_path, PIECES, accumulate_grad_batches=2), joined) < 1e-5  # worst seen 1.7e-6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_label_at_all_moves_nothing(accumulate, tmp_path):
    taken = gradients_of(tmp_path, [PIECES[3]] * 2, clip_norm=1.0, accumulate_grad_batches=accumulate)
    assert len(taken) == 2 // accumulate
    assert not any(g.any() for step in taken for g in step.values())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16_mixed_works_with_clipping_and_the_fused_optimizer(accumulate, tmp_path):
    stage = SFTStage(tiny_vlm(), AdamW(lr=1e-3))
    fit(tmp_path, stage, [WHOLE, WHOLE], precision="bf16-mixed", accumulate_grad_batches=accumulate)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in stage.parameters())
    assert moved(stage)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_fused_optimizer_behind_a_gradient_scaler_is_refused(clip_norm, tmp_path):
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigError, match=r"model.optimizer.fused: .* set it to false, or train in bf16-mixed"):
        fit(tmp_path, SFTStage(tiny_vlm(), clip_norm=clip_norm), [WHOLE], plugins=[scaled])


# ---------------------------------------------------------------- two processes
def test_two_processes_equal_one_big_batch_and_keep_both_random_states(one_big_batch, tmp_path):
    """Rank 0 holds the images and most labels, rank 1 has no image: it must neither hang nor weigh too much."""
    run_processes("two_processes.py", str(tmp_path), folder=tmp_path)
    wanted = one_big_batch[0.0]
    assert gap(torch.load(tmp_path / "gradients.pt"), wanted) < 1e-5  # worst seen 1e-6
    seen, decoder = torch.load(tmp_path / "seen.pt"), [g for name, g in wanted[0].items() if "decoder" in name]
    assert float(seen["norm/grad/decoder"]) == pytest.approx(float(l2_norm(decoder)), rel=1e-5)
    assert seen["loss"] == pytest.approx(float(loss_of(tiny_vlm()).detach()), rel=1e-5)
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)["rng"]
    for rank in (0, 1):
        own = torch.Generator().manual_seed(100 + rank).get_state()  # what this rank set before it saved
        assert torch.equal(saved[rank]["torch"], own)
        assert torch.equal(torch.load(tmp_path / f"rank{rank}.pt"), own), f"rank {rank} went on with another state"


# ---------------------------------------------------------------- optimizer and schedule in the loop
class Watch(L.Callback):
    """Learning rates of the steps, and what three generators give after each batch."""

    def __init__(self, save_after: int | None = None, path=None) -> None:
        self.rates, self.drawn, self.save_after, self.path = [], [], save_after, path

    def on_before_optimizer_step(self, trainer, stage, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        if trainer.global_step == self.save_after:
            trainer.save_checkpoint(self.path)


def test_the_schedule_counts_optimizer_steps(tmp_path):
    schedule, watch = WarmupCosine(total_steps=4, warmup_steps=2), Watch()
    stage = SFTStage(tiny_vlm(), AdamW(lr=2e-3), schedule)
    fit(tmp_path, stage, [WHOLE] * 8, accumulate_grad_batches=2, callbacks=[watch])
    wanted = [2e-3 * schedule.value_at(step) for step in range(4)]
    assert [rates[0] for rates in watch.rates] == pytest.approx(wanted)
    assert wanted[0] == 1e-3
    assert len(watch.rates[0]) == 2


def test_frozen_parameters_stay(tmp_path):
    stage = PretrainStage(tiny_vlm(), AdamW(lr=1e-2), frozen=["vlm.vision.*", "vlm.decoder.*"])
    fit(tmp_path, stage, [PIECES[1], WHOLE], [PIECES[1]])  # first no picture: nothing that trains is needed
    assert moved(stage) == {name for name, _ in stage.named_parameters() if name.startswith("vlm.projector.")}


def test_clipping_by_the_trainer_is_refused_since_the_stage_clips(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer.gradient_clip_val: is not followed, .* set model.clip_norm"):
        fit(tmp_path, SFTStage(tiny_vlm()), [WHOLE], gradient_clip_val=1.0)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"model.clip_norm: -1 is negative; 0 switches clipping off"):
        SFTStage(tiny_vlm(), clip_norm=-1)


# ---------------------------------------------------------------- logs
def mean_loss(vlm, batches: list[PackedBatch], source: str | None = None) -> float:
    losses = []
    for batch in batches:
        with torch.no_grad():
            logits = vlm(batch) @ vlm.decoder.output_weight.T
        each = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=IGNORE)
        keep = batch.labels.flatten() != IGNORE
        names = [batch.sources[number] if number >= 0 else "" for number in batch.segments.flatten().tolist()]
        if source:
            keep &= torch.tensor([name == source for name in names])
        losses.append(each[keep])
    return float(torch.cat(losses).mean())


def test_losses_are_logged_by_source_and_weighted_by_tokens(tmp_path):
    vlm = tiny_vlm()
    stage = SFTStage(tiny_vlm(), AdamW(lr=0.0))
    options = {"limit_val_batches": 4, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    trainer = fit(tmp_path, stage, [WHOLE], validation=PIECES, **options)
    got = {name: float(value) for name, value in trainer.logged_metrics.items()}
    wanted = {
        "train/loss": mean_loss(vlm, [WHOLE]),
        "train/loss/tiny": mean_loss(vlm, [WHOLE], "tiny"),
        "train/loss/text": mean_loss(vlm, [WHOLE], "text"),
        "val/loss": mean_loss(vlm, PIECES),
        "val/loss/tiny": mean_loss(vlm, PIECES, "tiny"),
        "val/loss/text": mean_loss(vlm, PIECES, "text"),
    }
    assert got == pytest.approx(wanted, rel=1e-5)
    assert wanted["train/loss/tiny"] != pytest.approx(wanted["train/loss/text"], rel=1e-4)


def test_a_batch_without_labels_logs_nothing(tmp_path):
    trainer = fit(tmp_path, SFTStage(tiny_vlm()), [PIECES[3]], validation=[PIECES[3]], log_every_n_steps=1)
    assert not trainer.logged_metrics


# ---------------------------------------------------------------- what others ask
class Data(L.LightningDataModule):
    def __init__(self, batches) -> None:
        super().__init__()
        self.batches, self.tokenizer = batches, tiny_tokenizer()

    def train_dataloader(self):
        return loader(self.batches)


def test_a_stage_learns_to_read_pictures_and_writes_what_it_learnt(tmp_path):
    encode = tiny_encoder()
    samples = [question(answer=answer, images=1, id=answer) for answer in ("yes", "no 12")]
    samples[1].images = question(images=2).images[1:]  # the second picture
    docs = [encode(sample) for sample in samples]
    stage = SFTStage(tiny_vlm(), AdamW(lr=2e-2, weight_decay=0.0))
    trainer = trainer_of(tmp_path)
    trainer.fit(stage, datamodule=Data([pack([docs], sum(map(len, docs)), 0)] * 60))
    asked = [encode.prompt(sample, thinking=False) for sample in samples]
    got = stage.generate(asked, max_new_tokens=12)
    assert [g.answer for g in got] == ["yes", "no 12"]
    assert got == generate(stage.vlm, asked, tiny_tokenizer(), max_new_tokens=12)
    assert stage.training


@pytest.mark.parametrize("cls", [PretrainStage, SFTStage])
def test_stages_tell_what_data_need_to_know(cls):
    stage = cls(tiny_vlm())
    assert stage.image_spec == stage.vlm.image_spec == tiny_encoder().image_spec
    assert stage.vocab_size == 320
    assert len(prompt(images=1).image_positions) == stage.image_spec.tokens_per_tile
