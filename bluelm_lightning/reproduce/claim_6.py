"""Claim 6: thinking against not thinking, from the same weights."""

from __future__ import annotations

from statistics import fmean

from bluelm_lightning.evaluation import evaluate
from bluelm_lightning.reproduce import ladder
from bluelm_lightning.reproduce.claim import Claim, Measured
from bluelm_lightning.reproduce.lab import Lab

TASKS = ("digits_sum", "arithmetic")

CLAIM = Claim(
    number=6,
    claim="Thinking beats non-thinking on every task, from the same weights.",
    report="thinking gains up to 40 points on AIME25 and 19.2 on MathVision over the non-thinking mode.",
    baseline="the same weights asked not to think, mean accuracy of the tasks in percent",
    unit="points",
    tried="A model that has learnt to read digits is fine-tuned in both modes on sums of four digits in a picture "
    "and of three to four terms as text: 450 steps of 3072 tokens, six passes in ten with the trace. 200 held-out "
    "questions a task, greedy, at most 64 new tokens. The gain is that of the task where it is smallest, so every task "
    "must gain. In a trial with a third of the tokens neither mode had learnt to add: "
    "thinking 11 % on digits and 4 % on text, without 8 and 4 %.",
)


def measure(lab: Lab, seed: int) -> Measured:
    runs = lab.runs(seed)
    ladder.tower(lab, runs)
    stage, data = lab.load(runs.fit("sft", "tiny/mini_sft.yaml", ["{tower}"]))
    samples = [sample for task in TASKS for sample in lab.held_out(task)]
    results, _ = evaluate(stage.vlm, data.encoder, samples, max_new_tokens=64)
    thinking, direct = (
        {task: 100 * results[task][mode].accuracy for task in TASKS} for mode in ("thinking", "non_thinking")
    )
    gains = {task: thinking[task] - direct[task] for task in TASKS}
    details = {f"{task}, thinking": thinking[task] for task in TASKS}
    details |= {f"{task}, not thinking": direct[task] for task in TASKS}
    return Measured(fmean(thinking.values()), fmean(direct.values()), min(gains.values()), details)
