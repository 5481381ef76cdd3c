"""The whole quickstart, as a user runs it. Minutes long: `make test-slow`."""

import itertools
import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quickstart_reaches_its_figures(tmp_path):
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-m", "bluelm_lightning.quickstart"], cwd=tmp_path, env=environment, check=True)
    root = tmp_path / "runs" / "quickstart"
    summary = json.loads((root / "summary.json").read_text())
    digits, vqa = summary["tasks"]["digits_sum"], summary["tasks"]["easy_vqa"]
    assert digits["thinking"]["accuracy"] >= 0.9
    assert digits["thinking"]["accuracy"] >= digits["non_thinking"]["accuracy"] + 0.2
    assert max(vqa[mode]["accuracy"] for mode in ("thinking", "non_thinking")) >= 0.8
    assert vqa["thinking"]["n"] == 9673
    assert {"easy_vqa.yes_no", "easy_vqa.shape", "easy_vqa.color", "arithmetic"} < set(summary["tasks"])
    assert summary["peak_rss_bytes"] < 6 * 2**30
    assert summary["wall_seconds"] < 900
    rl = summary["rl"]
    assert rl["mean_at_8"]["after"] >= rl["mean_at_8"]["before"] + 0.1
    assert rl["greedy"]["after"] >= rl["greedy_interval"]["before"][0]
    assert rl["thinking_tokens"]["after"] <= 1.2 * rl["thinking_tokens"]["before"]
    for low, high in itertools.pairwise(rl["budget_curve"]):
        assert high["high"] >= low["low"]  # monotone within its intervals
    assert all(point["overshoot"] == 0 and point["answered"] == 1 for point in rl["budget_curve"])
    area = {name: sum(point["accuracy"] for point in rl[name]) for name in ("budget_curve", "budget_curve_before")}
    assert area["budget_curve"] > area["budget_curve_before"]
    assert (root / "budget_curve.png").stat().st_size > 10_000
    assert (root / "answers.png").stat().st_size > 10_000
    for stage in ("align", "pretrain", "sft", "rl"):
        names = {path.name for path in (root / stage).iterdir()}
        assert {"config.yaml", "checkpoints", "metrics.csv", "lineage.json"} <= names
