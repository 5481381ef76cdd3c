"""Claim 3: the adapter first, then everything."""

from __future__ import annotations

from pathlib import Path

from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab, LabRuns

CLAIM = Claim(
    number=3,
    claim="Training the adapter alone first makes full training better than unfreezing at once.",
    report="the joint stage begins with the adapter alone (tower and decoder frozen) on 2.5M pairs.",
    baseline="everything unfrozen from the first step on, held-out loss (0.4 text + 0.6 captions)",
    unit="nats",
    tried=f"Tower and decoder come trained, each on its own data. Equal total steps: {ladder.ALIGN_STEPS} of the "
    f"adapter and {ladder.JOINT_STEPS} of everything against {ladder.ALIGN_STEPS + ladder.JOINT_STEPS} of "
    f"everything, on the same mix and at the same highest learning rate, {ladder.JOINT_LR}. Measured: "
    "held-out loss, text and captions weighted as the mix is. Also tried: the same number of steps of everything, "
    f"{ladder.JOINT_STEPS}, for both arms, so that the adapter's steps come on top; its gain is in the details.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    first = ladder.joint(lab, runs, "joint", ladder.WITH_TEXT)
    at_once = _at_once(lab, runs, "joint_at_once", ladder.ALIGN_STEPS + ladder.JOINT_STEPS)
    short = _at_once(lab, runs, "joint_at_once_short", ladder.JOINT_STEPS)
    (text, captions), (text_0, captions_0), (text_1, captions_1) = (
        [score.loss for score in ladder.scores(lab, folder, "text", "digits_caption")]
        for folder in (first, at_once, short)
    )
    ours, baseline, other = (
        0.4 * a + 0.6 * b for a, b in ((text, captions), (text_0, captions_0), (text_1, captions_1))
    )
    details = {
        "text loss, adapter first": text,
        "text loss, at once": text_0,
        "caption loss, adapter first": captions,
        "caption loss, at once": captions_0,
        "gain at equal steps of everything": other - ours,
    }
    return Measured(ours, baseline, baseline - ours, details)


def _at_once(lab: Lab, runs: LabRuns, name: str, steps: int) -> Path:
    """Everything unfrozen, straight from the tower and the student."""
    options = [lab.sources(ladder.WITH_TEXT), *ladder.steps(steps), f"--model.optimizer.lr={ladder.JOINT_LR}"]
    return runs.fit(name, "tiny/mini_joint.yaml", ["vision={tower}", "decoder={student}"], options)
