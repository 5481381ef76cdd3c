"""Preferences: pairs side by side, a reward model that learns them, and direct preference optimisation."""

import os
from itertools import islice, product
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from test_stage import Recorder
from tiny import PER_TILE, TILE, TINY_LM, VOCAB, png, tiny_decoder, tiny_tokenizer, tiny_vit, tiny_vlm, worst

from bluelm_lightning.components import DiscriminativeRewardModel, LanguageModel, MLPProjector, VisionLanguageModel
from bluelm_lightning.components.adapters import LowRank
from bluelm_lightning.data.loader import PackingPlan
from bluelm_lightning.data.packing import pack
from bluelm_lightning.data.pairs import PairEncoder
from bluelm_lightning.data.token_shares import mean_tokens
from bluelm_lightning.datamodules import (
    MultimodalDataModule,
    PreferenceDataModule,
    PretrainDataModule,
    PromptDataModule,
    SFTDataModule,
    SourceSpec,
)
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.inspection.reading import Reading
from bluelm_lightning.rl.rewards import RewardModel
from bluelm_lightning.stages import (
    AdamW,
    DistillStage,
    DPOStage,
    PPOStage,
    PretrainStage,
    RewardStage,
    RLStage,
    SFTStage,
    Stage,
)
from bluelm_lightning.types import Encoded, ImageSpec, Sample


class Preferences:
    """Red is preferred to blue, with and without a picture; number ``broken`` has no rejected answer."""

    def __init__(self, num: int = 12, broken: int = -1) -> None:
        self.num, self.broken = num, broken

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Sample:
        pictured = index % 3 == 0
        meta = {"chosen": "red" + "!" * (index % 4), "rejected": {"content": "blue", "thinking": "hm"}}
        if index == self.broken:
            del meta["rejected"]
        turns = [{"role": "user", "content": "<image>" * pictured + f"which {index}?"}]
        return Sample(f"p{index}", "prefs", turns, images=[png(seed=index)] * pictured, meta=meta)


def data_of(folder, source=None, **options) -> PreferenceDataModule:
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    options = {"sources": [SourceSpec(source=source or Preferences(), name="prefs")], **options}
    return PreferenceDataModule(str(folder / "tokenizer"), **{"row_tokens": 128, "num_workers": 0, **options})


class Keep(L.Callback):
    def __init__(self):
        self.batches, self.logged = [], []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(stage, data, folder, steps, **options) -> Keep:
    keep = Keep()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=[keep], log_every_n_steps=1,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **options,
    )  # fmt: skip
    trainer.fit(stage, data)
    keep.trainer = trainer
    return keep


def test_pairs_stand_side_by_side_with_any_number_of_workers(tmp_path):
    found = []
    for workers in (0, 2):
        keep = fit(RewardStage(tiny_vlm()), data_of(tmp_path, num_workers=workers), tmp_path, 3)
        found.append([batch.ids for batch in keep.batches])
        for batch in keep.batches:
            assert batch.sample_ids[0::2] == batch.sample_ids[1::2]
            texts = [tiny_tokenizer().decode(batch.ids[batch.segments == n]) for n in range(len(batch.sample_ids))]
            assert all("red" in text for text in texts[0::2])
            assert all("<think>hm</think>blue" in text for text in texts[1::2])
            assert (batch.tile_segments.bincount(minlength=len(texts))[0::2] > 0).any()
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_pairs_that_wait_hold_no_files_open(tmp_path):
    """A process may hold a thousand; shared memory takes one for each tensor."""
    data = data_of(tmp_path, Preferences(400), row_tokens=512, batch_rows=4, num_workers=1)
    data.prepare(RewardStage(tiny_vlm()))
    batches = iter(data.train_dataloader())
    assert len(next(batches).sample_ids) > 60
    held = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    assert sum("/torch_" in name for name in held) < 20


def test_an_answer_that_is_missing_is_skipped_and_named(tmp_path, caplog):
    fit(RewardStage(tiny_vlm()), data_of(tmp_path, Preferences(12, broken=4)), tmp_path, 3)
    assert "skipped sample p4: rejected is None; write the answer as a text" in caplog.text
    with pytest.raises(DataError, match="in a row cannot be used"):
        fit(RewardStage(tiny_vlm()), data_of(tmp_path, Preferences(1, broken=0)), tmp_path, 1)


def test_an_answer_is_read_as_any_other_turn():
    encoder, think = PairEncoder(tiny_tokenizer(), ImageSpec(TILE, PER_TILE)), tiny_tokenizer().encode("<think>")[0]

    def read(chosen) -> Encoded:
        turns = [{"role": "user", "content": "sum?"}]
        return encoder(Sample("p", "prefs", turns, where="a.tar:p", meta={"chosen": chosen, "rejected": "13"})).parts[0]

    traced = read({"content": "12", "thinking": "9+3"})
    for alike in ("<think>9+3</think>12", {"content": " <think> 9+3 </think> 12"}):
        assert torch.equal(read(alike).ids, traced.ids)
    assert think in traced.ids
    assert think not in read("<think></think>12").ids
    assert torch.equal(read({"content": [{"type": "text", "text": "12"}]}).ids, read("12").ids)
    for wrong, said in {
        "a \ud83d b": "is not valid Unicode",
        "<think>9+3": "opens <think> and never closes it",
        12: "12; write the answer as a text or as content and thinking",
    }.items():
        with pytest.raises(DataError, match=rf"^a\.tar:p.*chosen.*{said}"):
            read(wrong)


def test_both_answers_of_a_pair_keep_their_traces_or_lose_them(tmp_path):
    class Traced(Preferences):
        def __getitem__(self, index: int) -> Sample:
            meta = {"chosen": "<think>hm</think>red", "rejected": {"content": "blue", "thinking": "hm"}}
            return Sample(f"p{index}", "prefs", [{"role": "user", "content": f"which {index}?"}], meta=meta)

    think, kept = tiny_tokenizer().encode("<think>")[0], {}
    for share in (None, 0.0, 0.5):
        specs = [SourceSpec(source=Traced(), name="prefs", thinking_share=share)]
        data = data_of(tmp_path, sources=specs)
        data.prepare(RewardStage(tiny_vlm()))
        kept[share] = []
        for batch in islice(data.train_dataloader(), 10):
            traced = [bool((batch.ids[batch.segments == n] == think).any()) for n in range(len(batch.sample_ids))]
            assert traced[0::2] == traced[1::2]
            kept[share] += traced[0::2]
    assert all(kept[None])
    assert not any(kept[0.0])
    assert set(kept[0.5]) == {True, False}


def test_a_pair_that_does_not_fit_is_left_out_and_never_cut(tmp_path, caplog):
    class Long(Preferences):
        def __getitem__(self, index: int) -> Sample:
            times = 30 if index == 1 else 3
            turns = [{"role": "user", "content": f"which {index}?"}]
            return Sample(f"p{index}", "prefs", turns, meta={"chosen": "red " * times, "rejected": "blue " * times})

    data = data_of(tmp_path, Long(4), row_tokens=72, overlong="split")
    data.prepare(RewardStage(tiny_vlm()))
    loader = data.train_dataloader()
    for batch in islice(loader, 8):
        assert batch.sample_ids[0::2] == batch.sample_ids[1::2]
    assert loader.skipped["prefs"] > 0
    pair = data.encoder(Long()[1])
    assert f"skipped sample p1: {len(pair)} tokens, a row holds 72" in caplog.text
    plan = PackingPlan(72, overlong="split")
    short = sum(len(data.encoder(Long()[n])) for n in (0, 2, 3))
    assert mean_tokens(loader.fetcher, 0, plan) == short / 4  # the share of tokens agrees,
    reading = Reading(data.encoder, row_tokens=72, plan=plan)  # and so does the page of the data
    assert reading.misfit(list(pair.parts)) == (f"{len(pair)} tokens, a row holds 72", True)


def test_a_reward_model_learns_what_is_preferred_and_scores_rollouts(tmp_path):
    stage = RewardStage(tiny_vlm(seed=1), 16, margin=0.1, optimizer=AdamW(lr=3e-3))
    keep = fit(stage, data_of(tmp_path), tmp_path, 40)
    assert keep.logged[0]["train/loss"] == pytest.approx(float(-F.logsigmoid(torch.tensor(-0.1))), abs=1e-4)
    assert keep.logged[-1]["train/accuracy"] == 1.0
    assert keep.logged[-1]["train/loss"] < 0.1
    keep.trainer.save_checkpoint(tmp_path / "reward.ckpt")
    loaded = RewardModel(DiscriminativeRewardModel(tiny_vlm(seed=2), 16), str(tmp_path / "reward.ckpt")).model
    batch = keep.batches[-1]
    with torch.no_grad():
        scores = loaded(batch)
        assert torch.equal(scores[0::2] - scores[1::2], stage.eval().ahead(batch))
    assert (scores[0::2] > scores[1::2]).all()


def test_the_gradient_of_dpo_is_that_of_its_definition(tmp_path):
    recorder = Recorder()
    stage = DPOStage(tiny_vlm(seed=1), beta=0.3, label_smoothing=0.1, optimizer=recorder, clip_norm=0.0)
    keep = fit(stage, data_of(tmp_path), tmp_path, 1, accumulate_grad_batches=2)
    assert keep.logged[0]["train/loss"] == pytest.approx(0.6931, abs=1e-4)  # the policy is its reference
    policy, ahead = tiny_vlm(seed=1), []
    for batch in keep.batches:
        logits = (policy(batch).flatten(0, 1) @ policy.decoder.output_weight.T).log_softmax(-1)
        sums = []
        for document in range(len(batch.sample_ids)):
            held = (batch.segments.flatten() == document) & (batch.labels.flatten() >= 0)
            sums.append(logits[held].gather(1, batch.labels.flatten()[held, None]).sum())
        ahead += [0.3 * ((c - c.detach()) - (r - r.detach())) for c, r in zip(sums[0::2], sums[1::2])]
    ahead = torch.stack(ahead)
    (0.9 * -F.logsigmoid(ahead) + 0.1 * -F.logsigmoid(-ahead)).mean().backward()
    wanted = {f"vlm.{name}": p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert all(worst(recorder.taken[0][name], wanted[name], floor=1e-4) < 1e-4 for name in wanted)


@pytest.mark.parametrize("kind", [DPOStage, RewardStage])
def test_a_batch_of_padding_gives_gradients_of_zero(kind):
    stage = kind(LanguageModel(tiny_decoder()))
    losses = stage.loss_of(stage.ahead(pack([[]], 32, 0)))
    assert losses.shape == (0,)
    losses.sum().backward()
    gradients = {name: p.grad for name, p in stage.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []  # other processes wait for them
    assert all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_trains_no_output_head_of_its_own(tied):
    decoder = tiny_decoder(tie_embeddings=tied)
    RewardStage(LanguageModel(decoder))
    assert decoder.output_weight.requires_grad == tied
    assert decoder.model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("adapters", [False, True])
def test_dpo_learns_what_is_preferred(tmp_path, adapters):
    if adapters:
        decoder = tiny_decoder(config=TINY_LM, adapters=LowRank(4))
        vlm = VisionLanguageModel(tiny_vit(1), MLPProjector(24, 32), decoder)
        stage = DPOStage(vlm, 0.5, optimizer=AdamW(lr=1e-2), frozen=["vlm.vision.*", "vlm.projector.*"])
        assert stage.reference is None
    else:
        stage = DPOStage(tiny_vlm(seed=1), 0.5, optimizer=AdamW(lr=3e-3))
    keep = fit(stage, data_of(tmp_path), tmp_path, 15)
    assert keep.logged[0]["train/ahead"] == pytest.approx(0.0, abs=1e-5)
    assert keep.logged[-1]["train/accuracy"] == 1.0
    assert keep.logged[-1]["train/loss"] < 0.4


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match=r"^data\.sources\.stated_share: 0.5 for 'x': .*; set it to 0"):
        PreferenceDataModule("tokenizer", [SourceSpec(path="x", stated_share=0.5)])
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}):
        with pytest.raises(ConfigError, match=r"model\.beta"):
            DPOStage(tiny_vlm(), **wrong)
    with pytest.raises(ConfigError, match=r"model\.margin"):
        RewardStage(tiny_vlm(), margin=-1.0)


# ---------------------------------------------------------------- what fits what
GIVEN = {  # data modules, and stages that learn from what they give
    (SFTDataModule, PretrainDataModule): (SFTStage, PretrainStage, DistillStage),
    (PreferenceDataModule,): (RewardStage, DPOStage),
    (PromptDataModule,): (RLStage, PPOStage),
}


def test_a_stage_is_given_what_it_learns_from(tmp_path):
    given = data_of(tmp_path)._tokenizer_path, [SourceSpec(source=Preferences())]
    for kinds, fitting in product(GIVEN, GIVEN):
        for kind, stage in product(kinds, GIVEN[fitting]):
            made = type(stage.__name__, (), {"learns_from": stage.learns_from, "vocab_size": VOCAB})()
            made.image_spec = made.write = None
            if kinds == fitting:
                kind(*given).prepare(made)
                continue
            fits = " or ".join(found.__name__ for found in fitting)
            said = rf"^data: {stage.__name__} learns from \w+, and {kind.__name__} gives \w+; give it {fits}$"
            with pytest.raises(ConfigError, match=said):
                kind(*given).prepare(made)


def test_data_that_does_not_fit_ends_before_the_first_step(tmp_path):
    documents = SFTDataModule(data_of(tmp_path)._tokenizer_path, [SourceSpec(source=Preferences())], num_workers=0)
    for stage, data in ((DPOStage(tiny_vlm()), documents), (SFTStage(tiny_vlm()), data_of(tmp_path))):
        with pytest.raises(ConfigError, match=rf"^data: {type(stage).__name__} learns from"):
            fit(stage, data, tmp_path, 1)


def test_classes_that_do_not_say_what_passes_between_them_are_let_through(tmp_path):
    quiet, mute = type("Quiet", (MultimodalDataModule,), {}), type("Mute", (Stage,), {})(tiny_vlm())
    given = data_of(tmp_path)._tokenizer_path, [SourceSpec(source=Preferences())]
    quiet(*given).prepare(DPOStage(tiny_vlm()))
    PreferenceDataModule(*given).prepare(mute)
    with pytest.raises(ConfigError, match=r"^data: Mute answers no prompts; PromptDataModule goes with RLStage$"):
        PromptDataModule(*given).prepare(mute)
