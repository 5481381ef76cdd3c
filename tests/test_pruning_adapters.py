"""Pruning a decoder with low-rank adapters: what they have learned is in the weights of the smaller one."""

import json

import pytest
import torch
from test_pruning import WIDE, calibration, states, write_text_run
from tiny import tiny_decoder, tiny_tokenizer, worst

from bluelm_lightning.cli.load import built
from bluelm_lightning.cli.prune import main
from bluelm_lightning.components import CausalDecoder
from bluelm_lightning.components.adapters import LowRank, absorb, layers_of
from bluelm_lightning.components.pruning import PruningPlan, magnitude_importance, prune
from bluelm_lightning.errors import ConfigError


def moved(decoder: CausalDecoder) -> CausalDecoder:
    """With adapters that have learned something: at first they change nothing."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    return decoder


def test_adapters_are_absorbed_before_pruning():
    decoder, batch = moved(tiny_decoder(seed=1, config=WIDE, adapters=LowRank(2))), calibration()[0]
    with torch.no_grad():
        before = states(decoder, batch)
    for refused in (lambda: magnitude_importance(decoder), lambda: prune(decoder.model, PruningPlan(2), None)):
        with pytest.raises(ConfigError, match=r"has low-rank adapters; call components\.adapters\.absorb"):
            refused()
    absorb(decoder)
    assert not layers_of(decoder)
    small, report = prune(decoder.model, PruningPlan(), magnitude_importance(decoder))
    plain = tiny_decoder(config=WIDE)
    assert report.parameters == (plain.num_parameters(), plain.num_parameters())
    plain.model.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert worst(states(plain, batch), before) < 1e-4


def test_an_adapter_on_a_tied_head_is_not_absorbed():
    decoder = tiny_decoder(tie_embeddings=True, adapters=LowRank(2, targets=["q_proj", "lm_head"]))
    with pytest.raises(ConfigError, match=r"the weight of model\.lm_head is shared, its adapter is not; untie"):
        absorb(decoder)  # the input embedding would change too
    assert len(layers_of(decoder)) == 3
    absorb(tiny_decoder(tie_embeddings=False, adapters=LowRank(2, targets=["lm_head"])))


def test_the_command_prunes_a_run_with_adapters(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = write_text_run(tmp_path, tmp_path / "tokenizer", adapters={"rank": 2})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = config.rename(tmp_path / "run" / "config.yaml")
    vlm = built(["--config", str(config)])[1].vlm
    decoder = moved(vlm.decoder)
    torch.save(vlm.state_dict(), tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "same"), "--neurons", "40", "--batches", "1"]) == 0
    told = json.loads((tmp_path / "same" / "pruning.json").read_text())
    assert told["parameters"] == [tiny_decoder(config=WIDE).num_parameters()] * 2
    small, batch = CausalDecoder(checkpoint=str(tmp_path / "same")), calibration()[0]
    with torch.no_grad():  # nothing was cut; sums in another order: worst case 1.7e-5
        assert worst(states(small, batch), states(decoder, batch)) < 1e-4
