"""Needle accuracy by depth and length: by hand where the answers are known, and as a picture."""

import pytest
from tiny import question, tiny_encoder, tiny_vlm

from bluelm_lightning.errors import DataError
from bluelm_lightning.evaluation import evaluate
from bluelm_lightning.evaluation.needle_map import NeedleMap, draw_needle_maps, needle_map
from bluelm_lightning.types import Generation


def hidden(answer: str, tokens: int, depth: float):
    sample = question(answer=answer, id=f"{tokens}-{depth}")
    sample.answer, sample.meta = answer, {"tokens": tokens, "depth": depth}
    return sample


def test_cells_and_lengths_by_hand(monkeypatch):
    read = []

    def answers_8(vlm, prompts, tokenizer, max_new_tokens, batch_size):
        read.append((len(prompts), batch_size))
        return [Generation([8], "8", None, "8", 1, True)] * len(prompts)

    module = evaluate.__globals__
    monkeypatch.setitem(module, "generate", answers_8)
    samples = [hidden("8", 64, 0.0), hidden("8", 64, 0.49), hidden("9", 64, 0.1), hidden("9", 64, 0.5)]
    samples += [hidden("8", 512, 1.0), hidden("9", 512, 0.99)]
    told = needle_map(tiny_vlm(), tiny_encoder(), samples, bands=2, batch_tokens=256)
    assert read == [(4, 4), (2, 1)]  # rows of a batch by the length of the text, at least one
    assert told == NeedleMap([64, 512], [0.25, 0.75], [[2 / 3, None], [0.0, 0.5]], [0.5, 0.5])


def test_a_sample_without_depth_is_named():
    sample = hidden("8", 64, 0.5)
    del sample.meta["depth"]
    with pytest.raises(DataError, match=r"64-0\.5.*meta\.depth"):
        needle_map(tiny_vlm(), tiny_encoder(), [sample])


def test_the_picture_has_a_panel_a_map_and_is_small(tmp_path):
    from PIL import Image

    told = NeedleMap([256, 2048], [0.25, 0.75], [[1.0, 0.1], [0.9, None]], [0.95, 0.1])
    draw_needle_maps(tmp_path / "one.png", {"before": told}, trained=256)
    draw_needle_maps(tmp_path / "two.png", {"before": told, "after": told})
    one, two = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "two.png")
    assert two.width > 1.5 * one.width
    assert (tmp_path / "two.png").stat().st_size < 100_000
