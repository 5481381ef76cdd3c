"""The decoder: heads, checkpoints of every kind, settings, and architectures that would be wrong in silence."""

import pytest
import torch
from tiny import TINY_LM, VOCAB, gradients_of_squares, tiny_decoder, tiny_vlm, worst

from bluelm_lightning.components import (
    CausalDecoder,
)
from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.errors import ConfigError


def test_tied_and_untied_heads():
    tied, untied = tiny_decoder(tie_embeddings=True), tiny_decoder(tie_embeddings=False)
    assert untied.num_parameters() - tied.num_parameters() == VOCAB * 32
    assert tied.output_weight is tied.model.get_input_embeddings().weight
    assert untied.output_weight is not untied.model.get_input_embeddings().weight
    assert tied.flops_per_token(10) == untied.flops_per_token(10)  # a lookup multiplies nothing


def test_decoder_gradient_checkpointing_gives_the_same_gradients():
    embeds, positions = torch.randn(2, 6, 32), torch.arange(6).expand(2, 6)
    layout = DocumentLayout(torch.tensor([0, 4, 12], dtype=torch.int32), 8)
    plain, saving = tiny_decoder(), tiny_decoder(gradient_checkpointing=True)
    calls = []
    saving.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    first, second = (gradients_of_squares(part, embeds, positions, layout) for part in (plain, saving))
    assert len(calls) == 2, "the layer was not recomputed"
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unknown_settings_and_unsuited_architectures_are_refused():
    with pytest.raises(ConfigError, match=r"llama has no setting 'hiden_size'; did you mean hidden_size\?") as info:
        tiny_decoder(config={"hiden_size": 64})
    assert info.value.key == "config.hiden_size"
    with pytest.raises(ConfigError, match="llamaa"):
        CausalDecoder("llamaa")
    with pytest.raises(ConfigError, match="hidden_size"):
        tiny_decoder(config={"hidden_size": "wide"})
    with pytest.raises(ConfigError, match=r"not a multiple of the number of attention heads"):
        tiny_decoder(config={"hidden_size": 30})
    with pytest.raises(ConfigError, match="cannot build 'siglip'"):
        CausalDecoder("siglip")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match=r"cohere scales its logits \(logit_scale=0.0625\)"):
        CausalDecoder("cohere", small)
    with pytest.raises(ConfigError, match=r"the head of phi has a bias"):
        CausalDecoder("phi", small)
    with pytest.raises(ConfigError, match=r"mamba has .* look across documents"):
        CausalDecoder("mamba", {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32})
    with pytest.raises(ConfigError, match=r"stablelm has attention of its own"):
        CausalDecoder("stablelm", small)
    with pytest.raises(ConfigError, match=r"lfm2 has conv of its own"):
        CausalDecoder("lfm2", small | {"layer_types": ["conv"]})
    with pytest.raises(ConfigError, match=r"scaling 'dynamic' follows the longest document of a row") as info:
        tiny_decoder(rope={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert info.value.key == "decoder.rope"


def test_a_model_that_drops_the_layout_does_not_look_into_the_future():
    decoder = CausalDecoder("nemotron", {k: v for k, v in TINY_LM.items() if k != "head_dim"}, vocab_size=32)
    layout = DocumentLayout(torch.tensor([0, 4], dtype=torch.int32), 4)
    with pytest.raises(ValueError, match="NemotronAttention passes neither the layout"):
        decoder(torch.randn(1, 4, 32), torch.arange(4)[None], layout=layout)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


def test_yarn_takes_effect_and_equals_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    plain, yarn = tiny_decoder(), tiny_decoder(rope=YARN)
    frequencies = [d.model.base_model.rotary_emb.inv_freq for d in (plain, yarn)]
    assert not torch.allclose(*frequencies)
    config = LlamaConfig(**TINY_LM, vocab_size=VOCAB, rope_parameters=YARN, attn_implementation="eager")
    reference = LlamaForCausalLM(config).eval()
    reference.load_state_dict(yarn.model.state_dict())
    ids = torch.randint(0, VOCAB, (1, 200))  # beyond the original length
    layout = DocumentLayout(torch.tensor([0, 200], dtype=torch.int32), 200)
    with torch.no_grad():
        mine = yarn(yarn.embed(ids), torch.arange(200)[None], layout=layout) @ yarn.output_weight.T
        other = plain(plain.embed(ids), torch.arange(200)[None], layout=layout) @ plain.output_weight.T
        wanted = reference(input_ids=ids).logits
    assert worst(mine, wanted) < 3e-6  # worst seen 2.8e-7
    assert worst(other, wanted) > 1e-3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tied and an untied model as transformers saves them, with the models."""
    folder = tmp_path_factory.mktemp("checkpoint")
    models = {tied: tiny_decoder(seed=3, tie_embeddings=tied).model for tied in (True, False)}
    for tied, model in models.items():
        model.save_pretrained(folder / str(tied))
    return folder, models


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_from_a_folder(checkpoint, tied):
    folder, models = checkpoint
    decoder = CausalDecoder(checkpoint=str(folder / str(tied)), gradient_checkpointing=True)
    wanted = models[tied].state_dict()
    assert decoder.model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(t, wanted[key]) for key, t in decoder.model.state_dict().items())
    assert decoder.model.base_model.layers[0].training, "eval mode would switch gradient checkpointing off"
    assert (decoder.output_weight is decoder.model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [VOCAB + 64, VOCAB - 64])
def test_vocabulary_is_resized_and_keeps_its_rows(checkpoint, tied, rows):
    folder, models = checkpoint
    decoder = CausalDecoder(checkpoint=str(folder / str(tied)), vocab_size=rows)
    kept = min(rows, VOCAB)
    assert decoder.vocab_size == len(decoder.output_weight) == decoder.model.config.vocab_size == rows
    assert torch.equal(decoder.output_weight[:kept], models[tied].get_output_embeddings().weight[:kept])
    assert (decoder.output_weight is decoder.model.get_input_embeddings().weight) == tied


def test_checkpoint_settings_can_be_changed(checkpoint):
    folder, _ = checkpoint
    decoder = CausalDecoder(checkpoint=str(folder / "True"), rope=YARN, config={"attention_dropout": 0.5})
    assert decoder.model.config.rope_parameters["rope_type"] == "yarn"
    assert decoder.model.base_model.layers[0].self_attn.attention_dropout == 0.5
    with pytest.raises(ConfigError, match=r"has no setting 'num_layers'"):
        CausalDecoder(checkpoint=str(folder / "True"), config={"num_layers": 1})
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        CausalDecoder(checkpoint=str(folder / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere.gguf does not exist"):
        CausalDecoder(checkpoint=str(folder / "nowhere.gguf"))


def write_gguf(model, path, quantised: bool) -> None:
    """A qwen2 model as llama.cpp stores it; matrices as Q8_0 (blocks of 32 int8 with one scale) if quantised."""
    gguf = pytest.importorskip("gguf")
    c, writer = model.config, gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, c.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised and tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(names.get_name(key, (".weight", ".bias")), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("quantised", [False, True])
def test_decoder_from_gguf(quantised, tmp_path):
    file = str(tmp_path / "model.gguf")
    model = tiny_decoder("qwen2", config={"intermediate_size": 64, "tie_word_embeddings": False}).model
    write_gguf(model, file, quantised)
    decoder = CausalDecoder(checkpoint=file)
    mine, wanted = decoder.model.state_dict(), model.state_dict()
    assert mine.keys() == wanted.keys()
    gap = max(worst(mine[key], wanted[key], floor=1e-9) for key in wanted)
    assert gap < 5e-3 if quantised else gap == 0  # half a step of int8 is 1 / 254; worst seen 3.9e-3
    assert decoder.num_parameters(trainable=True) == decoder.num_parameters()
    assert not hasattr(decoder.model.config, "quantization_config")  # or it would be loaded as a quantised model
    decoder.model.save_pretrained(tmp_path / "out")
    again = CausalDecoder(checkpoint=str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(again[key], mine[key]) for key in mine)
    changed = CausalDecoder(checkpoint=file, vocab_size=VOCAB + 64, rope=YARN, tie_embeddings=False)
    assert changed.vocab_size == VOCAB + 64
    assert changed.model.config.rope_parameters["rope_type"] == "yarn"
    assert not torch.equal(*(d.model.base_model.rotary_emb.inv_freq for d in (decoder, changed)))


def test_everything_builds_on_the_meta_device(checkpoint):
    folder, _ = checkpoint
    with torch.device("meta"):
        vlm = tiny_vlm()
        decoder = CausalDecoder(checkpoint=str(folder / "False"), vocab_size=VOCAB + 64)
    assert {p.device.type for p in (*vlm.parameters(), *decoder.parameters())} == {"meta"}
    assert vlm.num_parameters() == tiny_vlm().num_parameters()
    assert vlm.image_spec == tiny_vlm().image_spec
    assert decoder.vocab_size == VOCAB + 64
