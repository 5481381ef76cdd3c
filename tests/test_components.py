"""Every component of the package keeps its family's contract; the family's own errors; weights in and out."""

import importlib
import pkgutil

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_doc, tiny_decoder, tiny_vit, tiny_vlm

import bluelm_lightning.components as components
from bluelm_lightning.components import (
    CausalDecoder,
    Component,
    Decoder,
    DiscriminativeRewardModel,
    LanguageModel,
    LinearProjector,
    MLPProjector,
    Projector,
    ResamplerProjector,
    ValueHead,
    VisionEncoder,
    VisionLanguageModel,
    ViTEncoder,
)
from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError

FAMILIES = (VisionEncoder, Projector, Decoder)


def tiny_value() -> ValueHead:
    """Not at its start, where the last layer is zero and no gradient reaches the first."""
    head = ValueHead(32, 16)
    torch.nn.init.normal_(head.out.weight)
    return head


def tiny_reward_model() -> DiscriminativeRewardModel:
    model = DiscriminativeRewardModel(tiny_vlm())
    model.head = tiny_value()
    return model


BUILDERS = {  # a component that needs arguments to be tiny; others are built without any
    ViTEncoder: tiny_vit,
    MLPProjector: lambda: MLPProjector(24, 32),
    LinearProjector: lambda: LinearProjector(24, 32),
    ResamplerProjector: lambda: ResamplerProjector(24, 32, num_queries=5),
    CausalDecoder: tiny_decoder,
    VisionLanguageModel: tiny_vlm,
    LanguageModel: lambda: LanguageModel(tiny_decoder()),
    ValueHead: tiny_value,
    DiscriminativeRewardModel: tiny_reward_model,
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


def run_value(head: ValueHead):
    values = head(torch.randn(2, 5, head.decoder_dim, dtype=torch.bfloat16))
    assert values.shape == (2, 5)
    return values


def run_reward_model(model: DiscriminativeRewardModel):
    scores = model(tiny_batch())
    assert scores.shape == (3,)
    return scores


def run_text(model: LanguageModel):
    return model(pack([[random_doc(12, 0, 1), random_doc(5, 0, 2)]], 24, 0)) @ model.decoder.output_weight.T


CONTRACTS = {
    LanguageModel: run_text,
    VisionEncoder: run_vision,
    Projector: run_projector,
    Decoder: run_decoder,
    VisionLanguageModel: run_vlm,
    ValueHead: run_value,
    DiscriminativeRewardModel: run_reward_model,
}


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
        if isinstance(part, DiscriminativeRewardModel):
            silent = [name for name in silent if "lm_head" not in name]  # it reads states and writes no token
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


@pytest.mark.parametrize("name", ["vision_dim", "decoder_dim"])
def test_a_projector_that_does_not_say_its_widths_is_named(name):
    projector = type("Mine", (LinearProjector,), {})(24, 32)
    delattr(projector, name)
    with pytest.raises(ConfigError, match=rf"^model\.vlm\.projector: Mine sets no {name}; set self\.{name} in its"):
        VisionLanguageModel(tiny_vit(), projector, tiny_decoder())


def test_a_projector_that_gives_other_features_than_it_says_is_named():
    def vlm(**attributes):
        return VisionLanguageModel(tiny_vit(), type("Mine", (LinearProjector,), attributes)(24, 32), tiny_decoder())

    size = tiny_vit().image_size
    tiles, patches = torch.zeros(2, 3, size, size, dtype=torch.uint8), tiny_vit().num_patches
    assert vlm().encode_images(tiles).shape == (2, patches, 32)
    for attributes, said in (
        ({"num_tokens": lambda self, patches: patches - 1}, rf"\({patches}, 32\) for a tile.*\({patches - 1}, 32\)"),
        ({"forward": lambda self, features: features}, rf"\({patches}, 24\) for a tile.*\({patches}, 32\)"),
    ):
        with pytest.raises(ConfigError, match=rf"^model\.vlm\.projector: Mine gives {said}"):
            vlm(**attributes).encode_images(tiles)


def test_rows_without_images_work_and_do_not_run_the_tower():
    vlm = tiny_vlm()
    vlm.vision.forward = None  # would raise
    batch = pack([[random_doc(7, 0, 1)], [random_doc(9, 0, 2)]], 10, 0)
    assert vlm(batch).shape == (2, 10, 32)
    vlm.requires_grad_(False)
    assert vlm(batch).shape == (2, 10, 32)  # nothing trains
    vlm.projector.requires_grad_(True)
    with torch.no_grad():
        assert vlm(batch).shape == (2, 10, 32)
    next(vlm.decoder.parameters()).requires_grad_(True)
    assert vlm(batch).requires_grad


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_rows_without_images_give_zero_gradients_to_what_learns_from_images_alone(part):
    vlm = tiny_vlm()
    batch = pack([[random_doc(7, 0, 1)], [random_doc(9, 0, 2)]], 10, 0)
    with torch.no_grad():
        wanted = vlm(batch)
    vlm.requires_grad_(False)
    getattr(vlm, part).requires_grad_(True)
    hidden = vlm(batch)
    hidden.sum().backward()
    assert torch.equal(hidden, wanted)
    assert all(p.grad is not None and not p.grad.any() for p in getattr(vlm, part).parameters())


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
