"""Distillation: divergences by their definition, a live teacher and its cache alike, and a student that learns."""

import json

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from test_stage import Recorder, loader, trainer_of
from tiny import VOCAB, random_doc, tiny_vlm, worst

from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.generation.teacher_cache import TeacherCache, TeacherCacheWriter
from bluelm_lightning.stages import AdamW, DistillPlan, DistillStage, write_cache
from bluelm_lightning.stages.distill_losses import distillation_loss, divergence, teacher_distribution

BEGUN = {"format": 2, "top_k": 2, "temperature": 1.0, "vocab_size": 9}
DOCS = [random_doc(20, 1, 1), random_doc(12, 0, 2, labelled=0.5), random_doc(24, 2, 3), random_doc(9, 0, 4)]


def batches():
    return [pack([DOCS[:2]], 40, 0), pack([DOCS[2:]], 40, 0)]


def kl(p, q):
    return float((p * (p / q).log()).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergences_by_their_definition(temperature):
    student, teacher = torch.tensor([[1.0, 0.0, -1.0, 2.0]]), torch.tensor([[0.5, 2.0, 0.0, -3.0]])
    q, p = (student / temperature).softmax(-1)[0], (teacher / temperature).softmax(-1)[0]
    for kind, wanted in (("forward", kl(p, q)), ("reverse", kl(q, p))):
        plan = DistillPlan(kind, temperature)
        found = divergence(student, *teacher_distribution(teacher, plan), plan)
        assert float(found) == pytest.approx(temperature**2 * wanted, rel=1e-5)
        plan = DistillPlan(kind, temperature, top_k=2)  # the teacher's likeliest are 1 and 0; 2 and 3 are one
        merged = [torch.stack([d[1], d[0], d[2] + d[3]]) for d in (p, q)]
        wanted = kl(*merged) if kind == "forward" else kl(*merged[::-1])
        found = divergence(student, *teacher_distribution(teacher, plan), plan)
        assert float(found) == pytest.approx(temperature**2 * wanted, rel=1e-4)


@pytest.mark.parametrize("gap", [4.0, 14.0, 18.0, 25.0])
@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_a_sure_student_has_the_value_and_gradient_of_float64(kind, gap):
    plan = DistillPlan(kind, 1.0, top_k=2)
    student, teacher = torch.zeros(1, 1000), torch.zeros(1, 1000)
    student[0, 0], teacher[0, 0], teacher[0, 1] = gap + torch.tensor(1000.0).log(), 7.0, 2.0

    def merged(logits):
        p = logits.double().softmax(-1)[0]
        return torch.stack([p[0], p[1], p[2:].sum()])

    mine, exact = (student.to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64))
    q, p = merged(exact), merged(teacher)
    wanted = (p * (p / q).log()).sum() if kind == "forward" else (q * (q / p).log()).sum()
    found = divergence(mine, *teacher_distribution(teacher, plan), plan)[0]
    (want,), (have,) = torch.autograd.grad(wanted, exact), torch.autograd.grad(found, mine)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)  # worst case 4e-6, of the rest of the teacher
    assert worst(have, want.float(), floor=1e-3) < 1e-4  # worst case 5e-5


@pytest.mark.parametrize("plan", [DistillPlan(), DistillPlan("reverse", 2.0, 5, 0.7)])
def test_the_chunked_loss_is_the_whole_one(plan):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, states, head = (torch.randn(n, 8, generator=generator) for n in (11, 30, 11, 30))
    labels = torch.randint(30, (11,), generator=generator)
    hidden.requires_grad_()
    weight.requires_grad_()
    logits = hidden @ weight.T
    apart = divergence(logits, *teacher_distribution(states @ head.T, plan), plan)
    whole = ((1 - plan.weight) * F.cross_entropy(logits, labels) + plan.weight * apart.mean()) * 3
    wanted = torch.autograd.grad(whole, (hidden, weight))
    fixed = (lambda part: teacher_distribution(states[part] @ head.T, plan), plan, 1 / 11)
    loss, losses, found = distillation_loss(hidden, weight, labels, *fixed, chunk_rows=4)
    assert float(loss) * 3 == pytest.approx(float(whole), rel=1e-5)
    for mine, theirs in zip(torch.autograd.grad(loss * 3, (hidden, weight)), wanted):
        assert worst(mine, theirs) < 1e-5
    assert worst(found, apart) < 1e-5
    assert worst(losses, F.cross_entropy(logits, labels, reduction="none")) < 1e-5


class Batches(L.LightningDataModule):
    def train_dataloader(self):
        return loader(batches())


def step(tmp_path, plan, accumulate=1, **teacher):
    recorder = Recorder()
    stage = DistillStage(tiny_vlm(seed=1), plan=plan, optimizer=recorder, clip_norm=0.0, **teacher)
    trainer_of(tmp_path, accumulate_grad_batches=accumulate).fit(stage, datamodule=Batches())
    return recorder.taken[0], stage


@pytest.mark.parametrize("plan", [DistillPlan(), DistillPlan("reverse", 1.5, 0, 0.5)])
def test_a_cache_of_the_whole_vocabulary_gives_the_gradient_of_the_live_teacher(tmp_path, plan):
    teacher = tiny_vlm(seed=7)
    assert write_cache(teacher, batches(), tmp_path / "cache", plan) == 4
    live, _ = step(tmp_path, plan, teacher=teacher)
    cached, _ = step(tmp_path, plan, cache=str(tmp_path / "cache"))
    assert live.keys() == cached.keys()
    assert all(worst(cached[name], live[name], floor=1e-4) < 1e-5 for name in live)


def test_micro_batches_are_one_batch(tmp_path):
    plan, big = DistillPlan(weight=0.5), pack([DOCS[:2], DOCS[2:]], 40, 0)
    student, teacher = tiny_vlm(seed=1), tiny_vlm(seed=7)
    places = big.labels.flatten() >= 0
    hidden, labels = student(big).flatten(0, 1)[places], big.labels.flatten()[places]
    logits = hidden @ student.decoder.output_weight.T
    theirs = (teacher(big).flatten(0, 1)[places] @ teacher.decoder.output_weight.T).detach()
    apart = F.kl_div(logits.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
    (0.5 * F.cross_entropy(logits, labels) + 0.5 * apart).backward()
    wanted = {f"vlm.{name}": p.grad for name, p in student.named_parameters() if p.grad is not None}
    found, _ = step(tmp_path, plan, accumulate=2, teacher=teacher)
    assert all(worst(found[name], wanted[name], floor=1e-4) < 1e-5 for name in wanted)


@pytest.mark.parametrize("top_k", [0, 16])
def test_a_student_comes_near_its_teacher(tmp_path, top_k):
    teacher = tiny_vlm(seed=7)
    plan = DistillPlan(top_k=top_k, hidden_weight=0.1)
    stage = DistillStage(tiny_vlm(seed=1), teacher, plan=plan, optimizer=AdamW(lr=1e-2))
    before, student = apart(stage, plan), stage.vlm
    trainer = trainer_of(tmp_path, max_epochs=30, max_steps=-1)
    trainer.fit(stage, datamodule=Batches())
    assert apart(stage, plan) < 0.4 * before
    assert not any(p.requires_grad for p in teacher.parameters())
    trainer.save_checkpoint(tmp_path / "d.ckpt")
    state = torch.load(tmp_path / "d.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("teacher.") for name in state)
    again = DistillStage(tiny_vlm(seed=2), tiny_vlm(seed=7), plan=plan)
    trainer_of(tmp_path, max_epochs=30, max_steps=-1).fit(again, datamodule=Batches(), ckpt_path=tmp_path / "d.ckpt")
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in again.vlm.state_dict().items())


@torch.no_grad()
def apart(stage, plan):
    total = 0.0
    for batch in batches():
        places = batch.labels.flatten() >= 0
        mine, theirs = (m(batch).flatten(0, 1)[places] @ m.decoder.output_weight.T for m in (stage.vlm, stage.teacher))
        total += float(divergence(mine, *teacher_distribution(theirs, plan), plan).mean())
    return total


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="either a teacher or a cache"):
        DistillStage(tiny_vlm())
    with pytest.raises(ConfigError, match=f"vocabulary has {VOCAB + 64} rows, the student's {VOCAB}"):
        DistillStage(tiny_vlm(), tiny_vlm(vocab_size=VOCAB + 64))
    with pytest.raises(ConfigError, match="no finished cache"):
        DistillStage(tiny_vlm(), cache=str(tmp_path))
    write_cache(tiny_vlm(), batches()[:1], tmp_path / "c", DistillPlan(top_k=4))
    with pytest.raises(ConfigError, match=r"temperature 1\.0, the plan says 2\.0"):
        DistillStage(tiny_vlm(), cache=str(tmp_path / "c"), plan=DistillPlan(temperature=2.0))
    with pytest.raises(ConfigError, match="holds a cache already"):
        TeacherCacheWriter(tmp_path / "c", 4, 1.0, 9)
    cache = TeacherCache(tmp_path / "c")
    assert len(cache) == 2
    with pytest.raises(DataError, match="sample x: is not in the cache"):
        cache.get("0" * 24, "sample x")
    for wrong in ({"kind": "sideways"}, {"temperature": 0.0}, {"weight": 2.0}):
        with pytest.raises(ConfigError, match=r"model\.plan"):
            DistillPlan(**wrong)


def test_an_unfinished_cache_is_refused_and_goes_on_with_the_same_settings(tmp_path):
    def write(number, settings=None, stop=False):
        with TeacherCacheWriter(tmp_path / "c", 2, 1.0, 9, settings, part_bytes=1) as writer:
            reached = writer.reached
            writer.add(str(number), torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2))
            writer.commit(number)
            if stop:
                raise KeyboardInterrupt
        return reached

    with pytest.raises(KeyboardInterrupt):
        write(0, stop=True)
    with pytest.raises(ConfigError, match="no finished cache"):
        TeacherCache(tmp_path / "c")
    with pytest.raises(ConfigError, match=r'begun otherwise: data was null and is \["a"\]'):
        write(1, {"data": ["a"]})
    with pytest.raises(ConfigError, match="is not empty and holds no cache"):
        TeacherCacheWriter(tmp_path, 2, 1.0, 9)
    assert write(1) == 0
    assert len(TeacherCache(tmp_path / "c")) == 2
    (tmp_path / "c/begun.json").write_text(json.dumps(BEGUN))  # killed just before the end
    told = (tmp_path / "c/manifest.json").read_bytes()
    (tmp_path / "c/manifest.json").unlink()
    with TeacherCacheWriter(tmp_path / "c", 2, 1.0, 9) as writer:
        assert writer.reached == 1
    assert (tmp_path / "c/manifest.json").read_bytes() == told
