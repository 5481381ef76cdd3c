"""Claim 4: where reasoning data stands."""

from __future__ import annotations

from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

HALF = ladder.REASON_STEPS // 2  # on reasoning, and as many on text and pictures

CLAIM = Claim(
    number=4,
    claim="Reasoning data placed in the multimodal phase is kept better than placed before it.",
    report="text reasoning is deliberately moved into the multimodal phase, so that it is not forgotten.",
    baseline="the same tokens with reasoning first and pictures after it, held-out loss on traces of sums",
    unit="nats",
    tried=f"Both arms take {2 * HALF} steps of one schedule, from the same aligned model, and see the same number "
    "of tokens of each kind: half are sums with their steps, a fifth docstrings, the rest captions. Ours "
    f"mixes them; the other trains {HALF} steps on sums alone, and then {HALF} on text and captions. "
    "Measured at the end.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    inside = ladder.reason_inside(lab, runs)
    config, plan = "tiny/mini_joint.yaml", [*ladder.steps(HALF, 2 * HALF), f"--model.optimizer.lr={ladder.JOINT_LR}"]
    runs.fit("reason_first", config, ["{align}"], [lab.sources({"arithmetic": 1.0}), *plan])
    plan.append("--model.schedule.start_step=inherit")
    before = runs.fit("reason_then", config, ["{reason_first}"], [lab.sources(ladder.WITH_TEXT), *plan])
    (learnt,) = ladder.scores(lab, runs.root / "reason_first", "arithmetic")
    ours, text, captions = ladder.scores(lab, inside, "arithmetic", "text", "digits_caption")
    baseline, text_0, captions_0 = ladder.scores(lab, before, "arithmetic", "text", "digits_caption")
    details = {
        "loss on sums right after they were learnt first": learnt.loss,
        "text loss, inside": text.loss,
        "text loss, before": text_0.loss,
        "caption loss, inside": captions.loss,
        "caption loss, before": captions_0.loss,
    }
    return Measured(ours.loss, baseline.loss, baseline.loss - ours.loss, details)
