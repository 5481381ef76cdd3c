"""``python -m bluelm_lightning.quickstart``: data, alignment, joint pre-training, SFT in both modes, RL, evaluation.

Everything goes to ``runs/quickstart``; each training stage is an ordinary ``bluelm-fit`` run that you could type.
``--evaluate RUN_DIR`` asks a finished run the same held-out questions; ``--data`` writes the data alone.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path("runs/quickstart")
STAGES = ("align", "pretrain", "sft", "rl")

_NEXT = """
Everything is in {root}:
  summary.json, accuracy.png, answers.png    what you see above
  budget_curve.png                           accuracy against thinking budget, before and after reinforcement learning
  align/ pretrain/ sft/ rl/                  config, checkpoints, metrics.csv, lineage.json of each stage
Next:
  bluelm-fit --config tiny/easy_vqa.yaml --init_from {root}/sft/checkpoints/last.ckpt
  bluelm-fit --config tiny/dpo.yaml --init_from {root}/sft/checkpoints/last.ckpt    (or tiny/reward.yaml)
  bluelm-fit --config 3b/sft.yaml --summary
  bluelm-data show {root}/data/digits_sum"""


def main(arguments: list[str]) -> int:
    started = time.time()
    if arguments[:1] == ["--evaluate"] and len(arguments) == 2:
        _evaluate(started, Path(arguments[1]), Path(arguments[1]))
        return 0
    if arguments == ["--data"]:
        _write_data(started)
        return 0
    if arguments:
        print("quickstart: error: takes no arguments, or --data, or --evaluate RUN_DIR", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in STAGES:  # this command owns these folders
        shutil.rmtree(ROOT / name, ignore_errors=True)
    _write_data(started)
    parent: Path | None = None
    for name in STAGES:
        options = ["--config", f"tiny/{name}.yaml", "--run_dir", str(ROOT / name)]
        options += ["--init_from", str(parent)] if parent else []
        _say("bluelm-fit " + " ".join(options), started)
        code = _fit(options)
        if code:
            return code
        parent = ROOT / name / "checkpoints" / "last.ckpt"
    from bluelm_lightning.quickstart.rl_report import compare

    _say("what reinforcement learning changed: held-out scans, sampled, greedy, and under thinking budgets", started)
    changed = compare(ROOT / "sft", ROOT / "rl", ROOT)
    _say("evaluating the fine-tuned model on held-out data, both modes", started)
    _evaluate(started, ROOT / "sft", ROOT, rl=changed)
    print(_NEXT.format(root=ROOT))
    return 0


def _write_data(started: float) -> None:
    from bluelm_lightning.quickstart.prepare import prepare

    _say("writing shards and tokenizer", started)
    for source, count in prepare(ROOT).items():
        print(f"  {source:<18}{count:>7} samples")


def _fit(arguments: list[str]) -> int:
    from bluelm_lightning.cli.fit import main as fit

    return fit(arguments)


def _evaluate(started: float, run: Path, out: Path, **more: Any) -> None:
    from bluelm_lightning.cli.load import load_run
    from bluelm_lightning.evaluation import evaluate
    from bluelm_lightning.quickstart.prepare import held_out_sources
    from bluelm_lightning.quickstart.report import draw_accuracy, draw_answers, print_table, write_summary

    stage, data = load_run(run)
    samples = [sample for source in held_out_sources().values() for sample in source]
    results, answers = evaluate(stage.vlm, data.encoder, samples, max_new_tokens=72)
    print_table(results)
    pictured = ["digits_sum", "easy_vqa.yes_no", "easy_vqa.shape", "easy_vqa.color"]
    draw_answers(out / "answers.png", answers, pictured)
    draw_accuracy(out / "accuracy.png", results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux reports KiB
    wall = time.time() - started
    write_summary(out / "summary.json", results, wall, peak, **more)
    print(f"{wall:.0f} s in all, {peak / 2**30:.2f} GiB at the peak")


def _say(text: str, started: float) -> None:
    print(f"\n[{time.time() - started:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
