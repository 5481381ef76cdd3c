"""The curve of accuracy against budget: by hand where the model is known, and as a picture."""

from types import SimpleNamespace

import pytest
from tiny import question, tiny_encoder, tiny_vlm

from bluelm_lightning.evaluation import budget_curve as module
from bluelm_lightning.evaluation.budget_curve import BudgetPoint, budget_curve, draw_budget_curve, log_budget_curve
from bluelm_lightning.generation import ThinkingBudget
from bluelm_lightning.types import Generation


def written(text: str, thinking: str | None, answer: str | None) -> Generation:
    ids = tiny_encoder().tokenizer(text, add_special_tokens=False)["input_ids"]
    return Generation(ids, text, thinking, answer, len(ids), answer is not None)


def test_points_by_hand(monkeypatch):
    asked = []

    def answers(vlm, prompts, tokenizer, max_new_tokens, budget, batch_size):
        asked.append(budget.max_thinking_tokens)
        right = written("<think>1111</think>8", "1111", "8")
        return [
            right,
            written("8", None, "8"),
            written("<think>11</think>9", "11", "9"),
            written("<think>1", "1", None),
        ]

    monkeypatch.setattr(module, "generate", answers)
    samples = [question(answer="8", id=str(n)) for n in range(4)]
    for sample in samples:
        sample.answer = "8"
    points = budget_curve(tiny_vlm(), tiny_encoder(), samples, [2, None], ThinkingBudget())
    assert asked == [2, None]
    assert [p.accuracy for p in points] == [0.5, 0.5]
    assert [p.overshoot for p in points] == [2, 0]  # four thinking tokens under a budget of two
    assert [p.answered for p in points] == [0.75, 0.75]
    assert points[0].mean_thinking_tokens == pytest.approx((4 + 0 + 2 + 1) / 4)
    assert points[0].low < 0.5 < points[0].high


def test_a_real_model_never_overshoots():
    samples = [question(answer="8", id=str(n)) for n in range(3)]
    for sample in samples:
        sample.answer = "8"
    points = budget_curve(tiny_vlm(), tiny_encoder(), samples, [0, 1, 3, None], ThinkingBudget(answer_reserve=4), 12)
    assert [p.overshoot for p in points] == [0, 0, 0, 0]
    assert points[0].mean_thinking_tokens == 0


def test_the_picture_is_drawn(tmp_path):
    points = [BudgetPoint(b, a, a - 0.1, a + 0.1, 0, 1.0, 3.0) for b, a in ((0, 0.2), (8, 0.6), (None, 0.9))]
    draw_budget_curve(tmp_path / "curve.png", {"after": points, "before": points})
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_curve_goes_to_wandb_with_every_figure():
    logged = []
    run = SimpleNamespace(log=logged.append)  # a real run would leave its service behind in this process
    point = BudgetPoint(8, 0.5, 0.4, 0.6, 0, 1.0, 7.5)
    log_budget_curve(run, {"after": [point, BudgetPoint(None, 0.9, 0.8, 1.0, 0, 1.0, 30.0)]})
    table = logged[0]["budget_curve_points"]
    assert table.columns[:3] == ["curve", "budget", "accuracy"]
    assert table.data[0] == ["after", 8, 0.5, 0.4, 0.6, 0, 1.0, 7.5]
    assert set(logged[0]) == {"budget_curve", "budget_curve_points"}
