"""Claim 3: the adapter first, then everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab, LabRuns

HIGH_LR = 6e-3  # three times that of the comparison: is unfreezing at once less stable?

CLAIM = Claim(
    number=3,
    claim="Training the adapter alone first makes full training better than unfreezing at once.",
    report="the joint stage begins with the adapter alone (tower and decoder frozen) on 2.5M pairs.",
    baseline="everything unfrozen from the first step on, held-out loss (0.4 text + 0.6 captions)",
    unit="nats",
    tried=f"Tower and decoder come trained, each on its own data. Equal total steps: {ladder.ALIGN_STEPS} of the "
    f"adapter and {ladder.JOINT_STEPS} of everything against {ladder.ALIGN_STEPS + ladder.JOINT_STEPS} of "
    f"everything, on the same mix and at the same highest learning rate, {ladder.JOINT_LR}. Measured: "
    "held-out loss, text and captions weighted as the mix is. Also tried, with gains in the details: the same number "
    f"of steps of everything, {ladder.JOINT_STEPS}, for both arms, so that the adapter's steps come on top; and a "
    f"learning rate of {HIGH_LR}, at which both arms are stable too. At 0.015, on seed 100 alone, the gain was -0.12.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs, steps = lab.runs(seed), ladder.ALIGN_STEPS + ladder.JOINT_STEPS
    first = _loss(lab, ladder.joint(lab, runs, "joint", ladder.WITH_TEXT))
    at_once = _loss(lab, _everything(lab, runs, "joint_at_once", steps))
    short = _loss(lab, _everything(lab, runs, "joint_at_once_short", ladder.JOINT_STEPS))
    first_high = _loss(lab, _everything(lab, runs, "joint_high", ladder.JOINT_STEPS, HIGH_LR, ["{align}"]))
    at_once_high = _loss(lab, _everything(lab, runs, "joint_at_once_high", steps, HIGH_LR))
    details = {
        "text loss, adapter first": first[1],
        "text loss, at once": at_once[1],
        "caption loss, adapter first": first[2],
        "caption loss, at once": at_once[2],
        "gain at equal steps of everything": short[0] - first[0],
        f"gain at a learning rate of {HIGH_LR}": at_once_high[0] - first_high[0],
    }
    return Measured(first[0], at_once[0], at_once[0] - first[0], details)


def _everything(
    lab: Lab,
    runs: LabRuns,
    name: str,
    steps: int,
    lr: float = ladder.JOINT_LR,
    parents: Sequence[str] = ("vision={tower}", "decoder={student}"),
) -> Path:
    """Everything unfrozen; unless ``parents`` says otherwise, straight from the tower and the student."""
    options = [lab.sources(ladder.WITH_TEXT), *ladder.steps(steps), f"--model.optimizer.lr={lr}"]
    return runs.fit(name, "tiny/mini_joint.yaml", parents, options)


def _loss(lab: Lab, folder: Path) -> tuple[float, float, float]:
    """Held-out loss as the mix weighs it, of text, of captions."""
    text, captions = (score.loss for score in ladder.scores(lab, folder, "text", "digits_caption"))
    return ladder.WITH_TEXT["text"] * text + ladder.WITH_TEXT["digits_caption"] * captions, text, captions
