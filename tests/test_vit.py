"""The vision tower: what it takes, what it refuses, and weights from timm's and transformers' files."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import TILE, gradients_of_squares, tiny_vit, worst

from bluelm_lightning.components import (
    ViTEncoder,
)
from bluelm_lightning.components.weights import read_state_dict
from bluelm_lightning.errors import ConfigError


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


@pytest.mark.parametrize("frozen_below", [False, True])
def test_vit_gradient_checkpointing_gives_the_same_gradients(frozen_below):
    images = torch.rand(2, 3, TILE, TILE)
    plain, saving = tiny_vit(), tiny_vit(gradient_checkpointing=True)
    for tower in (plain, saving):
        tower.model.patch_embed.requires_grad_(not frozen_below)
        tower.model.pos_embed.requires_grad_(not frozen_below)
    calls = []
    saving.model.blocks[0].register_forward_pre_hook(lambda *args: calls.append(1))
    first, second = gradients_of_squares(plain, images), gradients_of_squares(saving, images)
    assert len(calls) == 2, "the block was not recomputed"
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- weights
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
