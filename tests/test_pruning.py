"""Structured pruning: what does nothing can go without a trace, and the result is an ordinary model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny import TINY_LM, VOCAB, random_doc, tiny_decoder, tiny_tokenizer, worst

from bluelm_lightning.cli.fit import main as fit
from bluelm_lightning.cli.prune import main
from bluelm_lightning.components import CausalDecoder, LanguageModel
from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.components.pruning import (
    PruningPlan,
    activation_importance,
    count_parameters,
    magnitude_importance,
    plan_for,
    plan_of,
    prune,
)
from bluelm_lightning.data.convert import write_shards
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample

WIDE = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
}


@pytest.fixture
def tokenizer_folder(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def calibration():
    return [pack([[random_doc(20, seed=n), random_doc(9, seed=50 + n)]], 32, 0) for n in range(4)]


def states(decoder, batch):
    layout = DocumentLayout(batch.cu_seqlens, batch.max_seqlen)
    return decoder(decoder.embed(batch.ids), batch.positions, layout=layout)


BIASED = {"attention_bias": True, "mlp_bias": True}
BUILDS = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", BIASED),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),  # other names of the norms inside a head
    "olmo": ("olmo", {}),  # norms without weights
}


def silenced(build: str) -> CausalDecoder:
    """Neurons 3 and 7, group 1 and layer 1 do nothing at all; biases and norms of heads are drawn at random."""
    architecture, more = BUILDS[build]
    decoder = tiny_decoder(architecture, 1, {**WIDE, **more})
    with torch.no_grad():
        for name, parameter in decoder.model.named_parameters():
            if name.endswith(".bias") or ("self_attn" in name and name.endswith("norm.weight")):
                parameter.normal_()
        for number, block in enumerate(decoder.model.model.layers):
            attention, mlp = block.self_attn, block.mlp
            mlp.down_proj.weight[:, [3, 7]] = 0
            attention.o_proj.weight[:, 16:32] = 0
            for part, rows in ((mlp.gate_proj, [3, 7]), (attention.v_proj, slice(8, 16))):
                part.weight[rows] = 0
                if part.bias is not None:
                    part.bias[rows] = 0
            if number == 1:
                for part in (attention.o_proj, mlp.down_proj):
                    for parameter in part.parameters():
                        parameter.zero_()
    return decoder


@pytest.mark.parametrize("build", BUILDS)
def test_parts_that_do_nothing_go_without_a_trace(build, tmp_path):
    from transformers import AutoModelForCausalLM

    decoder, batch = silenced(build), calibration()[0]
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    small, report = prune(
        decoder.model, PruningPlan(2, None, 2, 38), activation_importance(LanguageModel(decoder), calibration())
    )
    assert report.layers == [0, 2]
    assert report.groups == [[0, 2]] * 2
    assert report.neurons == pytest.approx([1.0, 1.0])
    small.save_pretrained(tmp_path / "small")
    decoder.model.save_pretrained(tmp_path / "whole")
    loaded = CausalDecoder(checkpoint=str(tmp_path / "small"))
    plain = {name: AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("small", "whole")}
    with torch.no_grad():
        assert worst(states(loaded, batch), states(decoder, batch)) < 1e-5
        assert torch.equal(loaded.output_weight, decoder.output_weight)
        logits = {name: model(batch.ids).logits for name, model in plain.items()}  # transformers alone
        assert worst(logits["small"], logits["whole"]) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    counted = sum(p.numel() for p in small.parameters())
    assert report.parameters[1] == counted == count_parameters(small.config, PruningPlan().sizes(small.config))
    assert str(report).startswith(f"{report.parameters[0]:,} -> {report.parameters[1]:,} parameters")


KINDS = {
    "window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "no rotation": ("smollm3", {"no_rope_layers": [1, 1, 0, 0], "use_sliding_window": True, "sliding_window": 4}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_stay_keep_their_kind_of_attention(kind, tmp_path):
    architecture, more = KINDS[kind]
    decoder, batch = tiny_decoder(architecture, 1, {**WIDE, **more, "num_hidden_layers": 4}), calibration()[0]
    with torch.no_grad():
        for block in decoder.model.model.layers[:2]:  # without a window, and turned by their positions
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    small, report = prune(decoder.model, PruningPlan(2), activation_importance(LanguageModel(decoder), calibration()))
    assert report.layers == [2, 3]
    small.save_pretrained(tmp_path / "small")
    loaded = CausalDecoder(checkpoint=str(tmp_path / "small"))
    config = loaded.model.config
    assert config.layer_types == ["sliding_attention"] * 2
    assert getattr(config, "max_window_layers", 0) == 0
    assert getattr(config, "no_rope_layers", [0, 0]) == [0, 0]
    with torch.no_grad():
        assert worst(states(loaded, batch), states(decoder, batch)) < 1e-5


def test_the_magnitude_of_weights_is_a_baseline():
    decoder = silenced("qwen2")
    _, report = prune(decoder.model, PruningPlan(None, None, 2, 38), magnitude_importance(decoder))
    assert report.groups[0] == report.groups[2] == [0, 2]  # all of layer 1 is as small
    assert magnitude_importance(decoder).neurons[:, [3, 7]].max() == 0


def test_a_channel_that_is_silent_is_the_first_to_go():
    decoder = tiny_decoder(seed=1, config=WIDE)
    with torch.no_grad():
        decoder.model.get_input_embeddings().weight[:, 5] = 0
        for block in decoder.model.model.layers:
            block.self_attn.o_proj.weight[5] = 0
            block.mlp.down_proj.weight[5] = 0
    importance = activation_importance(LanguageModel(decoder), calibration())
    assert int(importance.channels.argmin()) == 5
    small, report = prune(decoder.model, PruningPlan(hidden_size=24), importance)
    assert len(report.channels) == 24
    assert 5 not in report.channels
    assert small.config.hidden_size == 24
    assert small.config.head_dim == 8  # not width / heads any more
    again = tiny_decoder(config={**WIDE, "hidden_size": 24, "head_dim": 8})
    again.model.load_state_dict(small.state_dict())
    assert states(again, calibration()[0]).shape == (1, 32, 24)


def test_a_model_of_another_build_is_refused_by_the_part_that_does_not_fit():
    decoder = tiny_decoder("helium", 1, WIDE)
    with pytest.raises(ConfigError, match=r"self_attn\.o_proj\.weight of Helium.* cannot be pruned"):
        prune(decoder.model, PruningPlan(num_key_value_heads=2), magnitude_importance(decoder))


def test_hooks_and_mode_are_gone_afterwards():
    decoder = tiny_decoder(seed=1, config=WIDE).train()
    activation_importance(LanguageModel(decoder), calibration())
    assert decoder.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in decoder.modules())
    with pytest.raises(ConfigError, match="calibration set is empty"):
        activation_importance(LanguageModel(decoder), [])


@pytest.mark.parametrize(("build", "depth"), [("llama", 0.0), ("qwen2", 0.5), ("llama with biases", 1.0)])
def test_a_plan_reaches_its_parameters(build, depth):
    architecture, more = BUILDS[build]
    decoder = tiny_decoder(architecture, 1, {**WIDE, **more, "num_hidden_layers": 8, "hidden_size": 96})
    config = decoder.model.config
    total = sum(p.numel() for p in decoder.model.parameters())
    assert count_parameters(config, PruningPlan().sizes(config)) == total
    plan = plan_for(config, int(0.6 * total), depth)
    assert plan == plan_for(config, 0.6, depth)
    small, report = prune(decoder.model, plan, activation_importance(LanguageModel(decoder), calibration()))
    assert 0.5 * total < report.parameters[1] <= 0.6 * total
    assert (small.config.num_hidden_layers == 8) == (depth == 0)


def test_sizes_are_numbers_or_shares():
    config = tiny_decoder(config=WIDE).model.config  # 3 layers, 48 wide, 3 groups of 2 heads, 40 neurons
    assert plan_of(config, (0.6, 0.5, 0.34, 0.35)) == PruningPlan(2, 24, 1, 16)
    assert plan_of(config, (1, None, 2, 38)) == PruningPlan(1, None, 2, 38)
    assert plan_of(config, (0.01, 0.9, None, None)) == PruningPlan(1, 48, None, None)  # 6 heads divide 24 and 48
    for wrong in (-1, 0, 1.5):
        with pytest.raises(ConfigError, match=f"{wrong} is no number and no share"):
            plan_of(config, (wrong, None, None, None))


def test_nonsense_is_refused():
    decoder = tiny_decoder(config=WIDE)
    with pytest.raises(ConfigError, match="not between 1 and the model's 3"):
        PruningPlan(num_hidden_layers=4).sizes(decoder.model.config)
    with pytest.raises(ConfigError, match="give a multiple of 6"):
        PruningPlan(hidden_size=40).sizes(decoder.model.config)
    with pytest.raises(ConfigError, match="not more than"):
        plan_for(decoder.model.config, 10**9)
    with pytest.raises(ConfigError, match="too few"):
        plan_for(decoder.model.config, 10)
    with pytest.raises(ConfigError, match="not built like Llama"):
        magnitude_importance(SimpleNamespace(model=torch.nn.Linear(2, 2)))


def test_a_language_model_is_the_decoder_and_refuses_pictures():
    decoder = tiny_decoder(seed=1)
    batch = pack([[random_doc(20, seed=1)]], 24, 0)
    model = LanguageModel(decoder)
    with torch.no_grad():
        assert torch.equal(model(batch), states(decoder, batch))
    assert [name for name, _ in model.named_children()] == ["decoder"]
    with pytest.raises(DataError, match="sample doc3: has a picture"):
        model(pack([[random_doc(20, 1, seed=3)]], 24, 0))


def write_text_run(folder, tokenizer_folder, **more) -> Path:
    """Sources in ``folder`` and ``text.yaml``, a stage of two steps on them; ``more`` goes to its decoder."""
    write_shards((Sample(f"t{n}", "text", text=f"the sum is {n} and {n + 1}") for n in range(60)), folder / "text")
    decoder = {"config": {**TINY_LM, **WIDE, "vocab_size": VOCAB}, **more}
    config = {
        "model": {"class_path": "PretrainStage", "init_args": {"vlm": {"class_path": "LanguageModel", "init_args": {
            "decoder": {"class_path": "CausalDecoder", "init_args": decoder}
        }}}},
        "data": {"class_path": "PretrainDataModule", "init_args": {
            "tokenizer": str(tokenizer_folder), "sources": [{"path": str(folder / "text")}],
            "row_tokens": 64, "num_workers": 0,
        }},
        "trainer": {"accelerator": "cpu", "max_steps": 2},
    }  # fmt: skip
    (folder / "text.yaml").write_text(yaml.safe_dump(config))
    return folder / "text.yaml"


def test_the_command_prunes_a_run_on_its_own_data(tmp_path, monkeypatch, capsys, tokenizer_folder):
    write_text_run(tmp_path, tokenizer_folder)
    monkeypatch.chdir(tmp_path)
    assert fit(["--config", "text.yaml", "--run_dir", "teacher"]) == 0
    assert main(["teacher", "--out", "small", "--parameters", "0.5", "--depth", "0.5", "--batches", "2"]) == 0
    told = json.loads(Path("small/pruning.json").read_text())
    assert told["parameters"][1] <= told["parameters"][0] // 2
    small = CausalDecoder(checkpoint="small")
    assert small.num_parameters() == told["parameters"][1]
    assert "parameters (" in capsys.readouterr().out
    assert main(["teacher", "--out", "small", "--layers", "1"]) == 2
    assert "is not empty" in capsys.readouterr().err
    wrong = {
        "--batches: -1 is below 1; raise it": ["--out", "x", "--batches", "-1"],
        "--batches: 0 is below 1; raise it": ["--out", "x", "--batches", "0"],
        "--out: text.yaml is a file; give a folder": ["--out", "text.yaml"],
    }
    for said, options in wrong.items():
        assert main(["teacher", "--layers", "1", *options]) == 2
        assert capsys.readouterr().err == f"bluelm-prune: error: {said}\n"
    assert main(["teacher", "--out", "other"]) == 2
    assert "either --parameters" in capsys.readouterr().err
