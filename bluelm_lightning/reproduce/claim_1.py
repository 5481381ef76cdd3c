"""Claim 1: a pruned and distilled student against one from scratch."""

from __future__ import annotations

from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

CLAIM = Claim(
    number=1,
    claim="A pruned and distilled student beats the same size from scratch at equal student tokens.",
    report="a 7B teacher pruned to 3B and distilled is more than 4 % better than 3B from scratch.",
    baseline="the same decoder from random weights on the same batches, held-out text loss",
    unit="nats",
    tried="A teacher of width 96 and 3 layers, trained for 200 steps, is pruned by activations to width 64 and 2 "
    "layers and distilled for 100 steps (forward KL, weight 0.9). Both students see the same 100 batches of "
    "1024 tokens; the teacher's own tokens are not counted, as in the report. Learning rate from scratch: "
    "3e-3, the teacher's; the student's: 2e-3. Every seed has the same teacher. Measured: loss on held-out "
    "docstrings.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    student = ladder.student(runs)
    scratch = runs.fit("scratch", "tiny/mini_text.yaml")
    (teacher,) = ladder.scores(lab, lab.runs(0).root / "teacher", "text")
    (ours,) = ladder.scores(lab, student, "text")
    (baseline,) = ladder.scores(lab, scratch, "text")
    return Measured(ours.loss, baseline.loss, baseline.loss - ours.loss, {"loss of the teacher": teacher.loss})
