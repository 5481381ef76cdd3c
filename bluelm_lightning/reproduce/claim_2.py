"""Claim 2: text in the joint stage keeps text ability."""

from __future__ import annotations

from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

CLAIM = Claim(
    number=2,
    claim="40 % text in the joint stage keeps text ability, 0 % loses it.",
    report="1.6T of the joint stage's 4T tokens are text, i.e. 40 %, which is what prevents forgetting.",
    baseline="the same stage on pictures alone, share of held-out text tokens lost over the stage, points",
    unit="points",
    tried="Measured: the share of held-out text tokens that greedy decoding gets right, before the stage and "
    "after it; the gain is how much less of it is lost. Not the loss: without text it grows without bound, "
    "and in an earlier trial one seed whose loss exploded made an interval from -3.4 to 9.2 nats. Both arms "
    "take 100 steps of 1024 tokens, so the arm without text sees more captions.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    kept = ladder.joint(lab, runs, "joint", ladder.WITH_TEXT)
    lost = ladder.joint(lab, runs, "joint_no_text", {"digits_caption": 1.0})
    (before,) = ladder.scores(lab, runs.root / "align", "text")
    text, captions = ladder.scores(lab, kept, "text", "digits_caption")
    text_0, captions_0 = ladder.scores(lab, lost, "text", "digits_caption")
    ours, baseline = 100 * (before.tokens - text.tokens), 100 * (before.tokens - text_0.tokens)
    details = {
        "text loss before": before.loss,
        "after with 40 % text": text.loss,
        "after with 0 %": text_0.loss,
        "caption loss with 40 % text": captions.loss,
        "with 0 %": captions_0.loss,
    }
    return Measured(ours, baseline, baseline - ours, details)
