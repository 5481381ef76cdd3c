"""Claim 3: the adapter first, then everything."""

from __future__ import annotations

from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

CLAIM = Claim(
    number=3,
    claim="Training the adapter alone first makes full training better than unfreezing at once.",
    report="the joint stage begins with the adapter alone (tower and decoder frozen) on 2.5M pairs.",
    baseline="everything unfrozen from the first step on, held-out loss (0.4 text + 0.6 captions)",
    unit="nats",
    tried=f"Tower and decoder come trained, each on its own data. Equal total steps: {ladder.ALIGN_STEPS} of the "
    f"adapter and {ladder.JOINT_STEPS} of everything against {ladder.ALIGN_STEPS + ladder.JOINT_STEPS} of "
    f"everything, on the same mix and at the same highest learning rate, {ladder.JOINT_LR}. Measured: "
    "held-out loss, text and captions weighted as the mix is.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    first = ladder.joint(lab, runs, "joint", ladder.WITH_TEXT)
    options = [lab.sources(ladder.WITH_TEXT), *ladder.steps(ladder.ALIGN_STEPS + ladder.JOINT_STEPS)]
    options.append(f"--model.optimizer.lr={ladder.JOINT_LR}")
    at_once = runs.fit("joint_at_once", "tiny/mini_joint.yaml", ["vision={tower}", "decoder={student}"], options)
    text, captions = ladder.scores(lab, first, "text", "digits_caption")
    text_0, captions_0 = ladder.scores(lab, at_once, "text", "digits_caption")
    ours, baseline = (0.4 * a.loss + 0.6 * b.loss for a, b in ((text, captions), (text_0, captions_0)))
    details = {
        "text loss, adapter first": text.loss,
        "text loss, at once": text_0.loss,
        "caption loss, adapter first": captions.loss,
        "caption loss, at once": captions_0.loss,
    }
    return Measured(ours, baseline, baseline - ours, details)
