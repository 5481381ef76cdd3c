"""Claim 5: what is measured, and that the picture is drawn from the figures in the documents."""

import json
from types import SimpleNamespace

import pytest
from tiny import tiny_decoder

from bluelm_lightning.components.text import LanguageModel
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.evaluation.needle_map import NeedleMap
from bluelm_lightning.recipe.prepare import LENGTHS, LONG
from bluelm_lightning.reproduce import claim_5
from bluelm_lightning.types import Sample

DEPTHS = [0.1, 0.3, 0.5, 0.7, 0.9]


class Lab:
    """Two runs with models that can be told apart."""

    def __init__(self, root):
        self.root, self.asked = root, []
        self.models = {name: LanguageModel(tiny_decoder(seed=n)) for n, name in enumerate(("needles", "needles_long"))}
        self.before = self.models["needles"].decoder.model.lm_head.weight.detach().clone()

    def runs(self, seed):
        return SimpleNamespace(fit=self.fit)

    def fit(self, name, config, parents=()):
        self.asked.append((name, config, list(parents)))
        return name

    def load(self, folder):
        return SimpleNamespace(vlm=self.models[folder]), SimpleNamespace(encoder=None)


def test_the_gain_is_that_of_the_longest_texts_and_the_picture_shows_every_cell(tmp_path, monkeypatch):
    lab, drawn = Lab(tmp_path), {}

    def known(vlm, encoder, samples, bands=5):
        lengths = sorted({sample.meta["tokens"] for sample in samples})
        assert {round(sample.meta["depth"], 2) for sample in samples} >= {0.01, 0.99}
        if lengths == [LONG]:  # the model before the stage with the positions of after it
            assert vlm is lab.models["needles_long"]
            assert (vlm.decoder.model.lm_head.weight == lab.before).all()
            return NeedleMap(lengths, DEPTHS, [[0.3]] * 5, [0.3])
        shares = [0.8, 0.4, 0.2, 0.1] if vlm is lab.models["needles"] else [0.9, 0.9, 0.8, 0.7]
        return NeedleMap(lengths, DEPTHS, [[share + row / 100 for share in shares] for row in range(5)], shares)

    def sample(root, tokens, depth, seed):
        return Sample(id=f"{seed}", source="needle", answer="otter", meta={"tokens": tokens, "depth": depth})

    monkeypatch.setattr(claim_5, "held_out_needle", sample)
    monkeypatch.setattr(claim_5, "needle_map", known)
    measured = claim_5.measure(lab, 0)
    assert lab.asked[1] == ("needles_long", "tiny/mini_long.yaml", ["{needles}"])
    assert (measured.ours, measured.baseline, measured.gain) == pytest.approx((70.0, 10.0, 60.0))
    assert measured.details["YaRN without training 2048"] == pytest.approx(30.0)
    assert len(measured.details) == 2 * (len(LENGTHS) + 5 * len(LENGTHS)) + 1
    (tmp_path / "reproduction.json").write_text(json.dumps({"claims": {"5": {"details": measured.details}}}))
    monkeypatch.setattr(claim_5, "draw_needle_maps", lambda path, maps, trained: drawn.update(maps))
    claim_5.draw(tmp_path)
    before, after = drawn.values()
    assert before.accuracy[4] == pytest.approx([0.84, 0.44, 0.24, 0.14])
    assert after.accuracy[0] == pytest.approx([0.9, 0.9, 0.8, 0.7])


def test_no_picture_without_figures(tmp_path):
    with pytest.raises(ConfigError, match=r"reproduction\.json.*--claims 5"):
        claim_5.draw(tmp_path)
