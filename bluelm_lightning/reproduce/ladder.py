"""The rungs that several claims stand on: the report's stages with mini models.

teacher -> pruned student, distilled -> (with a tower trained by captions) adapter alone -> everything unfrozen.
Teacher and tower are trained once, with seed 0, and every seed starts from them; all else is run once a seed.
Our sizes: decoders of 0.5M (teacher) and 0.2M parameters, rows of 256 tokens, 1024 tokens a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluelm_lightning.recipe.probes import Probe, probe
from bluelm_lightning.reproduce.lab import Lab, LabRuns

ALIGN_STEPS, JOINT_STEPS, REASON_STEPS = 30, 100, 160
JOINT_LR = 2e-3
WITH_TEXT: dict[str, float] = {"text": 0.4, "digits_caption": 0.6}  # the report: 40 % text


def steps(number: int, horizon: int | None = None) -> list[str]:
    """Options that train ``number`` steps of a schedule sized for ``horizon``."""
    return [f"--trainer.max_steps={number}", f"--model.schedule.total_steps={horizon or number}"]


def student(runs: LabRuns) -> Path:
    """A pruned teacher, distilled."""
    shared = runs.of_seed(0)
    shared.fit("teacher", "tiny/mini_teacher.yaml")
    shared.prune("pruned", "{teacher}", ["--layers=2", "--width=64", "--groups=2", "--neurons=192"])
    runs.keys |= shared.keys
    weights = "--model.teacher_weights={teacher}/checkpoints/last.ckpt"
    return runs.fit("student", "tiny/mini_distill.yaml", (), [weights, "--model.vlm.decoder.checkpoint={pruned}"])


def tower(lab: Lab, runs: LabRuns) -> Path:
    """A tower that has learnt from captions, in the place of SigLIP2."""
    sources = lab.sources({"digit_caption": {"token_weight": 0.6, "epochs": 1}, "digits_caption": 0.4})
    shared = runs.of_seed(0)
    options = [sources, *steps(300), "--model.optimizer.lr=3.0e-3"]
    folder = shared.fit("tower", "tiny/mini_joint.yaml", (), options)
    runs.keys |= shared.keys
    return folder


def align(lab: Lab, runs: LabRuns) -> Path:
    """The adapter alone, between the tower and the student."""
    student(runs)
    tower(lab, runs)
    options = [lab.sources({"digits_caption": 1.0}), *steps(ALIGN_STEPS)]
    options += ["--model.frozen=[vlm.vision.*, vlm.decoder.*]", "--model.optimizer.lr=3.0e-3"]
    return runs.fit("align", "tiny/mini_joint.yaml", ["vision={tower}", "decoder={student}"], options)


def joint(lab: Lab, runs: LabRuns, name: str, sources: Mapping[str, dict[str, Any] | float]) -> Path:
    """Everything unfrozen, after the adapter alone."""
    align(lab, runs)
    options = [lab.sources(sources), *steps(JOINT_STEPS), f"--model.optimizer.lr={JOINT_LR}"]
    return runs.fit(name, "tiny/mini_joint.yaml", ["{align}"], options)


def reason_inside(lab: Lab, runs: LabRuns) -> Path:
    """Everything unfrozen, after the adapter alone; half of the tokens are sums with their steps."""
    align(lab, runs)
    mix = {"arithmetic": 0.5, **{name: share / 2 for name, share in WITH_TEXT.items()}}
    options = [lab.sources(mix), *steps(REASON_STEPS), f"--model.optimizer.lr={JOINT_LR}"]
    return runs.fit("reason_inside", "tiny/mini_joint.yaml", ["{align}"], options)


def scores(lab: Lab, folder: Path, *names: str) -> list[Probe]:
    """Scores on held-out samples, by name."""
    stage, data = lab.load(folder)
    return [probe(stage.vlm, data.encoder, lab.held_out(name)) for name in names]
