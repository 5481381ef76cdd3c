"""Every component of the package keeps its family's contract; the family's own errors; weights in and out."""

import importlib
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import TILE, TINY_LM, VOCAB, random_doc, tiny_decoder, tiny_vit, tiny_vlm, worst

import bluelm_lightning.components as components
from bluelm_lightning.components import (
    CausalDecoder,
    Component,
    Decoder,
    LinearProjector,
    MLPProjector,
    Projector,
    ResamplerProjector,
    VisionEncoder,
    VisionLanguageModel,
    ViTEncoder,
)
from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.components.weights import init_from, read_state_dict
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError

FAMILIES = (VisionEncoder, Projector, Decoder)
BUILDERS = {  # a component that needs arguments to be tiny; others are built without any
    ViTEncoder: tiny_vit,
    MLPProjector: lambda: MLPProjector(24, 32),
    LinearProjector: lambda: LinearProjector(24, 32),
    ResamplerProjector: lambda: ResamplerProjector(24, 32, num_queries=5),
    CausalDecoder: tiny_decoder,
    VisionLanguageModel: tiny_vlm,
}


def find_components() -> list[type[Component]]:
    for module in pkgutil.walk_packages(components.__path__, components.__name__ + "."):
        importlib.import_module(module.name)
    found, waiting = [], [Component]
    while waiting:
        new = [cls for cls in waiting.pop().__subclasses__() if cls.__module__.startswith("bluelm_lightning.")]
        found += new
        waiting += new
    return [cls for cls in found if cls not in FAMILIES]


def tiny_batch():
    return pack([[random_doc(12, 2, 1), random_doc(5, 0, 2)], [random_doc(20, 1, 3)]], 24, 0)


# ---------------------------------------------------------------- contracts
def run_vision(tower: VisionEncoder):
    images = torch.rand(3, 3, tower.image_size, tower.image_size)
    features = tower(images)
    assert features.shape == (3, tower.num_patches, tower.width)
    assert tower.flops_per_image() > 2 * tower.num_parameters()
    for name, _ in tower.named_parameters():
        depth, deepest = tower.depth_of(name)
        assert 0 <= depth <= deepest
    return features


def run_projector(projector: Projector):
    for side in (4, 5):  # an odd side too
        features = torch.randn(2, side * side, projector.vision_dim)
        tokens = projector(features)
        assert tokens.shape == (2, projector.num_tokens(side * side), projector.decoder_dim)
    assert projector(features[:0]).shape[0] == 0
    return tokens


def run_decoder(decoder: Decoder):
    ids = torch.randint(0, decoder.vocab_size, (2, 6))
    embeds, positions = decoder.embed(ids), torch.arange(6).expand(2, 6)
    assert embeds.shape == (2, 6, decoder.width)
    hidden = decoder(embeds, positions, layout=DocumentLayout(torch.tensor([0, 6, 12], dtype=torch.int32), 6))
    assert hidden.shape == (2, 6, decoder.width)
    assert decoder.output_weight.shape == (decoder.vocab_size, decoder.width)
    later = decoder.embed(ids.clone().index_fill_(1, torch.tensor([5]), 3))
    again = decoder(later, positions, layout=DocumentLayout(torch.tensor([0, 6, 12], dtype=torch.int32), 6))
    assert torch.equal(hidden[:, :5], again[:, :5]), "a later token changed an earlier hidden state"
    assert len(decoder.cache_shape()) == 3
    assert decoder.flops_per_token(100) > decoder.flops_per_token(10) > 0
    return hidden @ decoder.output_weight.T


def run_vlm(vlm: VisionLanguageModel):
    batch = tiny_batch()
    hidden = vlm(batch)
    assert hidden.shape == (2, 24, vlm.decoder.width)
    assert vlm.vocab_size == vlm.decoder.vocab_size
    assert vlm.image_spec == (vlm.vision.image_size, 4) or vlm.image_spec.tokens_per_tile == 4
    return hidden @ vlm.decoder.output_weight.T


CONTRACTS = {VisionEncoder: run_vision, Projector: run_projector, Decoder: run_decoder, VisionLanguageModel: run_vlm}


def test_the_walk_finds_every_component():
    assert set(find_components()) >= set(BUILDERS), "the walk lost components"


@pytest.mark.parametrize("cls", find_components(), ids=lambda cls: cls.__name__)
class TestContract:
    def build(self, cls) -> Component:
        return BUILDERS.get(cls, cls)()

    def test_forward_and_backward(self, cls):
        family = next((f for f in CONTRACTS if issubclass(cls, f)), None)
        assert family, f"{cls.__name__} is of no family that this test knows"
        part = self.build(cls)
        out = CONTRACTS[family](part)
        assert out.dtype == torch.float32
        assert out.isfinite().all()
        (out * torch.randn_like(out)).sum().backward()
        silent = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        silent = [name for name in silent if not name.endswith(("qkv.bias", "key_value.bias"))]  # softmax ignores k's
        assert not silent, f"no gradient reaches {silent}"

    def test_save_and_load_bitwise(self, cls, tmp_path):
        part, other = self.build(cls), self.build(cls)
        with torch.no_grad():
            for p in other.parameters():
                p.normal_()
        part.save(tmp_path / "part.safetensors")
        other.load(tmp_path / "part.safetensors")
        mine, loaded = part.state_dict(), other.state_dict()
        assert mine.keys() == loaded.keys()
        assert all(torch.equal(mine[key], loaded[key]) for key in mine)

    def test_wrong_files(self, cls, tmp_path):
        part = self.build(cls)
        with pytest.raises(ConfigError, match=r"nowhere\.safetensors does not exist"):
            part.load(tmp_path / "nowhere.safetensors")
        save_file({"stranger": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(ConfigError, match=rf"{cls.__name__} does not fit: missing: .*left over: stranger"):
            part.load(tmp_path / "other.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"not a file of tensors")
        with pytest.raises(ConfigError, match=r"broken.safetensors is not a readable weights file"):
            part.load(tmp_path / "broken.safetensors")

    def test_components_do_not_log(self, cls):
        part = self.build(cls)
        with pytest.raises(RuntimeError, match=r"log\('x'\).*the stage logs"):
            part.log("x", 1.0)
        with pytest.raises(RuntimeError, match="a, b"):
            part.log_dict({"a": 1.0, "b": 2.0})

    def test_num_parameters(self, cls):
        part = self.build(cls)
        total = sum(p.numel() for p in part.parameters())
        assert part.num_parameters() == part.num_parameters(trainable=True) == total
        first = next(part.parameters()).requires_grad_(False)
        assert part.num_parameters(trainable=True) == total - first.numel()


@pytest.mark.parametrize("hook", ["training_step", "configure_optimizers", "on_train_batch_start"])
def test_loop_hooks_are_refused_in_subclasses(hook):
    with pytest.raises(TypeError, match=rf"Mine defines {hook}.*stages.Stage"):
        type("Mine", (LinearProjector,), {hook: lambda self: None})


# ---------------------------------------------------------------- wiring
def test_widths_must_fit():
    with pytest.raises(ConfigError, match=r"vision_dim=16 but the vision tower is 24 wide; set vision_dim: 24"):
        VisionLanguageModel(tiny_vit(), MLPProjector(16, 32), tiny_decoder())
    with pytest.raises(ConfigError, match=r"decoder_dim=48 but the decoder is 32 wide; set decoder_dim: 32") as info:
        VisionLanguageModel(tiny_vit(), MLPProjector(24, 48), tiny_decoder())
    assert info.value.key == "model.vlm.projector.decoder_dim"


def test_rows_without_images_work_and_do_not_run_the_tower():
    vlm = tiny_vlm()
    vlm.vision.forward = None  # would raise
    batch = pack([[random_doc(7, 0, 1)], [random_doc(9, 0, 2)]], 10, 0)
    assert vlm(batch).shape == (2, 10, 32)


# ---------------------------------------------------------------- projectors
def test_mlp_projector_pads_an_odd_side_and_joins_blocks_of_two_by_two():
    projector = MLPProjector(1, 4)
    projector.mlp = torch.nn.Identity()
    grid = torch.arange(1.0, 10.0).view(1, 9, 1)  # 1 2 3 / 4 5 6 / 7 8 9, padded with zeros to 4 x 4
    blocks = [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]
    assert projector(grid).tolist() == [blocks]
    assert MLPProjector(1152, 2560).num_tokens(27 * 27) == 196


def test_projectors_name_the_wrong_number():
    with pytest.raises(ConfigError, match="15 patches do not form a square"):
        MLPProjector(4, 4).num_tokens(15)
    with pytest.raises(ConfigError, match="decoder_dim 30 is not a multiple of num_heads 8"):
        ResamplerProjector(4, 30)


# ---------------------------------------------------------------- vision tower
def test_vit_drops_prefix_tokens():
    tower = tiny_vit(model_name="vit_tiny_patch16_224", shape={"reg_tokens": 2})
    images = torch.rand(2, 3, TILE, TILE)
    everything = tower.model.forward_features((images - tower.mean) / tower.std)
    assert everything.shape[1] == 1 + 2 + tower.num_patches
    assert torch.equal(tower(images), everything[:, 3:])


def test_vit_normalises_with_the_models_own_statistics():
    tower = tiny_vit(model_name="vit_tiny_patch16_224", mean=[0.1, 0.2, 0.3])
    assert tower.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    own = torch.tensor(tower.model.pretrained_cfg["std"])
    assert torch.equal(tower.std.flatten(), own)
    images = torch.rand(1, 3, TILE, TILE)
    stretched = tiny_vit(model_name="vit_tiny_patch16_224", mean=[0.0] * 3, std=[1.0] * 3)
    same = (images - tower.mean) / tower.std
    assert torch.equal(tower(images), stretched(same))


@pytest.mark.parametrize("size", [(16, 32), (32, 8)])  # 4 x 8 patches, and 8 x 2 = 16, whose root is whole
def test_vit_refuses_patches_that_form_no_square(size):
    with pytest.raises(ConfigError, match=rf"{size[0] // 4} x {size[1] // 4} patches, not a square"):
        tiny_vit(image_size=None, shape={"img_size": size})


def test_vit_names_what_timm_cannot_build(tmp_path):
    with pytest.raises(ConfigError, match="vit_nonsense"):
        ViTEncoder("vit_nonsense")
    with pytest.raises(ConfigError, match="embed_dims"):
        tiny_vit(shape={"embed_dims": 3})
    with pytest.raises(ConfigError, match=r"resnet18 is no plain transformer \(no patch_embed\)"):
        ViTEncoder("resnet18")
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors does not exist"):
        tiny_vit(weights=str(tmp_path / "nowhere.safetensors"))


def test_vit_layer_depths():
    tower = tiny_vit(model_name="vit_tiny_patch16_224", shape={"pre_norm": True})
    depth = {name: tower.depth_of(name) for name, _ in tower.named_parameters()}
    assert depth["model.pos_embed"] == depth["model.patch_embed.proj.weight"] == (0, 3)
    assert depth["model.norm_pre.weight"] == (0, 3)  # the norm before the blocks, not the last one
    assert depth["model.blocks.0.attn.qkv.weight"] == (1, 3)
    assert depth["model.blocks.1.mlp.fc1.weight"] == (2, 3)
    assert depth["model.norm.weight"] == (3, 3)


def gradients(part, *inputs) -> dict[str, torch.Tensor]:
    part.zero_grad()
    part(*inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen_below", [False, True])
def test_vit_gradient_checkpointing_gives_the_same_gradients(frozen_below):
    images = torch.rand(2, 3, TILE, TILE)
    plain, saving = tiny_vit(), tiny_vit(gradient_checkpointing=True)
    for tower in (plain, saving):
        tower.model.patch_embed.requires_grad_(not frozen_below)
        tower.model.pos_embed.requires_grad_(not frozen_below)
    calls = []
    saving.model.blocks[0].register_forward_pre_hook(lambda *args: calls.append(1))
    first, second = gradients(plain, images), gradients(saving, images)
    assert len(calls) == 2, "the block was not recomputed"
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- vision weights
def siglip_pair(tmp_path, image_size=TILE):
    """transformers' tower of random weights, and its file."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        image_size=image_size, patch_size=4, attn_implementation="eager",
    )  # fmt: skip
    reference = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.normal_(std=0.1)
    file = tmp_path / "model.safetensors"
    reference.save_pretrained(tmp_path)
    return reference, str(file)


def test_siglip_file_gives_transformers_features(tmp_path):
    reference, file = siglip_pair(tmp_path)
    tower = tiny_vit(weights=file, shape={"act_layer": "gelu_tanh"})
    images = torch.rand(2, 3, TILE, TILE)
    wanted = reference((images - 0.5) / 0.5).last_hidden_state
    assert worst(tower(images), wanted) < 1e-6  # worst seen 1.4e-7


def test_siglip_names_with_any_prefix_and_with_the_text_half(tmp_path):
    reference, _ = siglip_pair(tmp_path)
    state = {"vision_model." + name.removeprefix("vision_model."): t for name, t in reference.state_dict().items()}
    whole = state | {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(1)}
    save_file(whole, tmp_path / "whole.safetensors")
    tower = tiny_vit(weights=str(tmp_path / "whole.safetensors"), shape={"act_layer": "gelu_tanh"})
    bias = state["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    assert torch.equal(tower.model.blocks[1].attn.qkv.bias[24:48], bias)


def test_siglip_files_that_do_not_fit_are_refused(tmp_path):
    _, file = siglip_pair(tmp_path)
    with pytest.raises(ConfigError, match=r"set shape\.act_layer: gelu_tanh"):
        tiny_vit(weights=file)
    with pytest.raises(ConfigError, match=r"missing: blocks\.2\."):
        tiny_vit(weights=file, depth=3, shape={"act_layer": "gelu_tanh"})
    state = read_state_dict(file)
    extra = next(key for key in state if "layers.0.layer_norm1.weight" in key).replace("layer_norm1", "layer_norm3")
    save_file(state | {extra: torch.zeros(24)}, tmp_path / "extra.safetensors")
    with pytest.raises(ConfigError, match=r"left over: .*layers\.0\.layer_norm3"):
        tiny_vit(weights=str(tmp_path / "extra.safetensors"), shape={"act_layer": "gelu_tanh"})


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_tiny_patch16_224"])  # with a class token too
def test_timm_file_of_another_image_size_has_its_positions_resized(name, tmp_path):
    small = tiny_vit(model_name=name)
    torch.save(small.model.state_dict(), tmp_path / "tower.pth")
    same = tiny_vit(model_name=name, seed=1, weights=str(tmp_path / "tower.pth"))
    assert all(torch.equal(t, small.state_dict()[key]) for key, t in same.state_dict().items())
    large = tiny_vit(model_name=name, seed=1, weights=str(tmp_path / "tower.pth"), image_size=2 * TILE)
    prefix = small.model.num_prefix_tokens
    shrunk = F.avg_pool2d(large.model.pos_embed[0, prefix:].T.view(1, 24, 8, 8), 2).flatten(2)[0].T
    wanted = small.model.pos_embed[0, prefix:]
    assert (shrunk - wanted).abs().max() < 0.5 * wanted.abs().max()  # interpolated, not drawn anew
    assert torch.equal(large.model.pos_embed[:, :prefix], small.model.pos_embed[:, :prefix])


# ---------------------------------------------------------------- decoder
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
    first, second = gradients(plain, embeds, positions, layout), gradients(saving, embeds, positions, layout)
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
    with pytest.raises(ConfigError, match=r"lfm2 has conv of its own"):
        CausalDecoder("lfm2", small | {"layer_types": ["conv"]})


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
    decoder.model.save_pretrained(tmp_path / "out")  # transformers refuses this for a "quantised" model
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


# ---------------------------------------------------------------- weights by component
def test_init_from_loads_by_component_whatever_the_prefix(tmp_path):
    donor, model = tiny_vlm(seed=5), tiny_vlm(seed=6)
    state = {f"vlm.{key}": tensor for key, tensor in donor.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "stage.ckpt")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = init_from(model, tmp_path / "stage.ckpt", ["vision", "projector"])
    assert [(r.component, r.parameters) for r in report] == [
        (name, getattr(donor, name).num_parameters()) for name in ("vision", "projector")
    ]
    for key, tensor in model.state_dict().items():
        source = before if key.startswith("decoder.") else donor.state_dict()
        assert torch.equal(tensor, source[key]), key
    assert len(init_from(model, tmp_path / "stage.ckpt")) == 3
    assert all(torch.equal(t, donor.state_dict()[key]) for key, t in model.state_dict().items())


def test_init_from_reads_what_save_writes_for_tied_heads(tmp_path):
    donor, model = tiny_vlm(seed=5, tie_embeddings=True), tiny_vlm(seed=6, tie_embeddings=True)
    donor.save(tmp_path / "vlm.safetensors")  # holds the tied matrix once
    init_from(model, tmp_path / "vlm.safetensors")
    assert all(torch.equal(t, donor.state_dict()[key]) for key, t in model.state_dict().items())
    untied = tiny_vlm(tie_embeddings=False)
    untied.save(tmp_path / "untied.safetensors")
    with pytest.raises(ConfigError, match="differ, but the model ties them; set tie_embeddings: false"):
        init_from(model, tmp_path / "untied.safetensors")


def test_the_outermost_component_owns_a_key(tmp_path):
    """Inner modules may have a component's name: OPT's layers are ``model.decoder.layers``."""
    donor = torch.nn.ModuleDict({"decoder": torch.nn.ModuleDict({"decoder": torch.nn.Linear(2, 2)})})
    model = torch.nn.ModuleDict({"decoder": torch.nn.ModuleDict({"decoder": torch.nn.Linear(2, 2)})})
    torch.save({f"vlm.{key}": t for key, t in donor.state_dict().items()}, tmp_path / "w.pt")
    init_from(model, tmp_path / "w.pt")
    assert torch.equal(model["decoder"]["decoder"].weight, donor["decoder"]["decoder"].weight)


def break_state(state, how):
    key = "vlm.projector.mlp.0.weight"
    if how == "missing":
        del state[key]
    elif how == "left over":
        state["vlm.projector.stranger"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(7, 3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"component 'projector' does not fit: missing: mlp\.0\.weight"),
        ("left over", r"component 'projector' does not fit: left over: stranger"),
        ("shape", r"mlp\.0\.weight has shape \(7, 3\), the model wants \(32, 96\)"),
    ],
)
def test_init_from_is_strict(how, message, tmp_path):
    state = {f"vlm.{key}": tensor for key, tensor in tiny_vlm().state_dict().items()}
    break_state(state, how)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=message):
        init_from(tiny_vlm(), tmp_path / "w.pt")


def test_init_from_names_components_and_files_that_are_not_there(tmp_path):
    vlm = tiny_vlm()
    with pytest.raises(ConfigError, match=r"nowhere\.ckpt does not exist"):
        init_from(vlm, tmp_path / "nowhere.ckpt")
    torch.save({f"vlm.vision.{k}": t for k, t in vlm.vision.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"no component 'tower'; this model has vision, projector, decoder"):
        init_from(vlm, tmp_path / "w.pt", ["tower"])
    with pytest.raises(ConfigError, match=r"holds nothing for component 'projector'; its components: vision"):
        init_from(vlm, tmp_path / "w.pt")


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


@pytest.mark.parametrize("content", [{"state_dict": {"a": Evil()}}, [1, 2], {"epoch": 3}, {}])
def test_read_state_dict_runs_no_code_and_wants_tensors(content, tmp_path):
    torch.save(content, tmp_path / "w.ckpt")
    with pytest.raises(ConfigError, match=r"w.ckpt (is not a readable|holds no dictionary of tensors)"):
        read_state_dict(tmp_path / "w.ckpt")


@pytest.mark.parametrize("name", ["w.ckpt", "w.safetensors"])
def test_read_state_dict_names_a_cut_file(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ConfigError, match=rf"{name} is not a readable weights file"):
        read_state_dict(tmp_path / name)
