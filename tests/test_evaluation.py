"""Scores, intervals, grouping by task, and both modes of one model."""

import json

import pytest
import tiny
from PIL import Image

from bluelm_lightning.errors import DataError
from bluelm_lightning.evaluation import Answered, evaluate, exact_match, summarise, wilson_interval
from bluelm_lightning.quickstart.report import draw_accuracy, draw_answers, write_summary
from bluelm_lightning.types import Generation


def _answered(task: str, answer: str | None, thinking: str | None = None, tokens: int = 2) -> Answered:
    sample = tiny.question(answer="yes", images=1, task=task)
    sample.answer = "yes"
    return Answered(sample, Generation([], "", thinking, answer, tokens, True), exact_match(answer, "yes"))


@pytest.mark.parametrize(
    ("answer", "right"),
    [("19", True), (" 19 ", True), ("19.", True), ("190", False), ("1 9", False), ("", False), (None, False)],
)
def test_exact_match(answer, right):
    assert exact_match(answer, "19") is right


def test_exact_match_ignores_case():
    assert exact_match("Circle.", "circle")


def test_wilson_interval_by_hand():
    # 8 of 10: centre (0.8 + 0.19208) / 1.38416 = 0.7167, half 1.96 sqrt(0.016 + 0.009604) / 1.38416 = 0.2266
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(10, 10)[0] < 0.75
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_a_task_counts_for_its_parents():
    items = [_answered("vqa.shape", "yes"), _answered("vqa.color", "no", "hm", 6), _answered("sum", None, "open")]
    results = summarise(items)
    assert set(results) == {"vqa", "vqa.shape", "vqa.color", "sum"}
    assert (results["vqa"].accuracy, results["vqa"].n, results["vqa"].mean_tokens) == (0.5, 2, 4.0)
    assert (results["vqa"].thought, results["vqa.shape"].thought, results["sum"].answered) == (0.5, 0.0, 0.0)


def test_both_modes_are_asked_and_scored():
    vlm, encoder = tiny.tiny_vlm(), tiny.tiny_encoder()
    samples = [tiny.question(images=1, task="a", answer="x"), tiny.question("and now?", task="b")]
    for sample in samples:
        sample.answer = "x"
    results, answers = evaluate(vlm, encoder, samples, max_new_tokens=3)
    assert set(results) == {"a", "b"}
    assert set(results["a"]) == {"thinking", "non_thinking"}
    assert [item.sample.task for item in answers["thinking"]] == ["a", "b"]
    samples[1].answer = None
    with pytest.raises(DataError, match="no reference answer; set the field answer"):
        evaluate(vlm, encoder, samples)


def test_the_report_holds_what_was_measured(tmp_path):
    items = [_answered("vqa.shape", "yes", "a circle"), _answered("vqa.shape", "no")]
    results = {task: {"thinking": r, "non_thinking": r} for task, r in summarise(items).items()}
    write_summary(tmp_path / "summary.json", results, wall_seconds=1.5, peak_rss_bytes=7)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tasks"]["vqa.shape"]["non_thinking"]["accuracy"] == 0.5
    assert (summary["wall_seconds"], summary["peak_rss_bytes"]) == (1.5, 7)
    draw_answers(tmp_path / "answers.png", {"thinking": items, "non_thinking": items}, ["vqa.shape"])
    draw_accuracy(tmp_path / "accuracy.png", results)
    assert Image.open(tmp_path / "answers.png").width > 1000
    assert Image.open(tmp_path / "accuracy.png").height > 300
