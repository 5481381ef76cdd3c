"""The teacher's cache finds each document's own rows, and refuses what it was not written for."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import VOCAB, random_doc, tiny_vlm, worst

from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.stages import DistillPlan, DistillStage, write_cache
from bluelm_lightning.stages.distill_losses import distillation_loss
from bluelm_lightning.types import IGNORE

TEACHER = tiny_vlm(seed=7)
SHOWN, TEXT = random_doc(20, 1, 1), random_doc(15, 0, 2)


def written(folder, *docs, plan=None):
    """A student with the cache of a batch of these documents each alone."""
    write_cache(TEACHER, [pack([[doc]], 40, 0) for doc in docs], folder, plan or DistillPlan())
    return DistillStage(tiny_vlm(seed=1), cache=str(folder), plan=plan)


@torch.no_grad()
def differs(stage, *docs):
    """Largest difference of log-probabilities between cache and live teacher, over a batch of these documents."""
    batch = pack([list(docs)], 64, 0)
    live = DistillStage(tiny_vlm(seed=1), TEACHER)
    whole = live._live(live._teacher_states(batch))(slice(None))[1]
    tokens, found = stage._from_cache(batch)(slice(None))
    assert len(tokens) == len(found) == len(whole)
    return worst(torch.zeros_like(whole).scatter(1, tokens, found), whole)


def test_the_same_text_under_another_picture_is_another_document(tmp_path):
    other = replace(SHOWN, id="other", tiles=255 - SHOWN.tiles)
    stage = written(tmp_path / "c", SHOWN, other)
    assert len(stage.cache) == 2
    assert differs(stage, other, SHOWN) < 1e-4
    with pytest.raises(DataError, match="sample third: is not in the cache"):
        differs(stage, replace(SHOWN, id="third", tiles=SHOWN.tiles.flip(-1)))


def test_the_same_tokens_with_other_places_labelled_are_another_document(tmp_path):
    cut = replace(TEXT, labels=TEXT.labels.clone())  # as a trace that was cut just before its end
    cut.labels[(TEXT.labels != IGNORE).nonzero()[3]] = IGNORE
    stage = written(tmp_path / "c", TEXT, cut)
    assert len(stage.cache) == 2
    assert differs(stage, cut, TEXT) < 1e-4


def test_a_batch_of_padding_alone_has_a_loss_of_zero_with_gradients(tmp_path):
    stage = written(tmp_path / "c", TEXT, plan=DistillPlan(top_k=4))
    batch = pack([[]], 32, 0)
    tokens, values = stage._from_cache(batch)(slice(0, 8))
    assert (tokens.shape, tokens.dtype, values.shape, values.dtype) == ((0, 4), torch.int64, (0, 4), torch.float32)
    weight, (hidden, labels, _) = stage.vlm.decoder.output_weight, stage.labelled(batch)
    loss, _, _ = distillation_loss(hidden, weight, labels, stage._from_cache(batch), stage.plan, 1.0)
    loss.backward()
    assert float(loss) == 0
    assert all(not p.grad.any() for p in stage.vlm.decoder.parameters())


def test_a_count_of_rows_that_is_not_the_count_of_places_names_the_sample(tmp_path):
    written(tmp_path / "c", TEXT)
    part = tmp_path / "c/part-000000.json"
    told = json.loads(part.read_text())
    (place,) = told["documents"].values()
    place[1] -= 1
    part.write_text(json.dumps(told))
    stage = DistillStage(tiny_vlm(seed=1), cache=str(tmp_path / "c"))
    with pytest.raises(DataError, match=rf"sample {TEXT.id}: {place[1]} rows in the cache .*, {place[1] + 1} labelled"):
        differs(stage, TEXT)


def test_a_cache_of_an_older_format_is_refused(tmp_path):
    written(tmp_path / "c", TEXT)
    manifest = tmp_path / "c/manifest.json"
    told = json.loads(manifest.read_text())
    del told["format"]
    manifest.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="is of format 1, read is 2; write it again with bluelm-cache"):
        DistillStage(tiny_vlm(seed=1), cache=str(tmp_path / "c"))


def test_a_cache_of_another_vocabulary_is_refused(tmp_path):
    write_cache(tiny_vlm(vocab_size=VOCAB + 64), [pack([[TEXT]], 40, 0)], tmp_path / "c", DistillPlan(top_k=4))
    with pytest.raises(ConfigError, match=rf"model\.cache.* {VOCAB + 64} rows, the student's {VOCAB}; give both"):
        DistillStage(tiny_vlm(), cache=str(tmp_path / "c"))


def test_more_tokens_than_the_vocabulary_are_the_vocabulary(tmp_path):
    stage = written(tmp_path / "c", TEXT, plan=DistillPlan(top_k=VOCAB + 10))
    assert stage.cache.top_k == VOCAB
    assert differs(stage, TEXT) < 1e-4
