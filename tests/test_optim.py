"""Parameter groups: strict globs, the first match wins, layer-wise decay by hand, no decay on vectors."""

import pytest
import torch
from tiny import tiny_vit, tiny_vlm
from torch import nn

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages import AdamW, ParameterGroup, SFTStage


class Root(nn.Module):
    """A stage as the optimizer sees it: names begin with ``vlm.``."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm = tiny_vlm()


def settings(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, tuple[float, float]]:
    """name -> (lr, weight decay)"""
    names = {id(p): name for name, p in module.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_every_trainable_parameter_once_and_no_decay_on_vectors():
    root = Root()
    root.vlm.vision.requires_grad_(False)
    got = settings(AdamW(lr=1e-3, weight_decay=0.1).build(root), root)
    assert got.keys() == {name for name, _ in root.named_parameters() if not name.startswith("vlm.vision.")}
    for name, p in root.named_parameters():
        if name in got:
            assert got[name] == (1e-3, 0.1 if p.ndim > 1 else 0.0), name


def test_the_first_glob_that_matches_wins():
    root = Root()
    groups = [
        ParameterGroup("vlm.projector.mlp.0.*", lr=5e-3),
        ParameterGroup("vlm.projector.*", lr=2e-3, weight_decay=0.2),
        ParameterGroup("vlm.decoder.*", weight_decay=0.3),
    ]
    got = settings(AdamW(lr=1e-3, weight_decay=0.1, groups=groups).build(root), root)
    assert got["vlm.projector.mlp.0.weight"] == (5e-3, 0.1)
    assert got["vlm.projector.mlp.2.weight"] == (2e-3, 0.2)
    assert got["vlm.projector.mlp.2.bias"] == (2e-3, 0.0)
    assert got["vlm.decoder.model.lm_head.weight"] == (1e-3, 0.3)
    assert got["vlm.vision.model.pos_embed"] == (1e-3, 0.1)


def test_a_rate_of_zero_is_a_rate():
    root = Root()
    groups = [ParameterGroup("vlm.vision.*", lr=0.0, weight_decay=0.0)]
    got = settings(AdamW(lr=1e-3, groups=groups).build(root), root)
    assert got["vlm.vision.model.blocks.0.attn.proj.weight"] == (0.0, 0.0)


def test_layer_wise_decay_of_a_tower_of_two_blocks_by_hand():
    root = Root()
    groups = [ParameterGroup("vlm.vision.*", lr=1.0, layer_decay=0.5)]
    got = settings(AdamW(lr=1e-3, groups=groups).build(root), root)
    rates = {name.removeprefix("vlm.vision.model."): lr for name, (lr, _) in got.items() if "vision" in name}
    wanted = {  # depths 0, 1, 2, 3: embeddings, two blocks, last norm
        "patch_embed.proj.weight": 0.125, "pos_embed": 0.125, "patch_embed.proj.bias": 0.125,
        "blocks.0.attn.qkv.weight": 0.25, "blocks.0.norm1.bias": 0.25,
        "blocks.1.mlp.fc2.weight": 0.5, "norm.weight": 1.0,
    }  # fmt: skip
    assert {name: rates[name] for name in wanted} == wanted
    assert set(rates.values()) == {0.125, 0.25, 0.5, 1.0}
    assert got["vlm.projector.mlp.0.weight"][0] == 1e-3


def test_layer_wise_decay_starts_from_the_optimizers_rate_and_asks_the_owner():
    tower = nn.ModuleDict({"any": nn.ModuleDict({"name": tiny_vit()})})
    got = settings(AdamW(lr=2.0, groups=[ParameterGroup("*", layer_decay=0.5)]).build(tower), tower)
    assert got["any.name.model.blocks.1.mlp.fc1.weight"][0] == 1.0
    with pytest.raises(ConfigError, match=r"vlm.projector.mlp.0.weight belongs to no component with layers"):
        AdamW(groups=[ParameterGroup("vlm.projector.*", layer_decay=0.5)]).build(Root())


def test_groups_of_equal_settings_are_merged():
    root = Root()
    assert len(AdamW().build(root).param_groups) == 2  # with and without decay
    groups = [ParameterGroup("vlm.vision.*"), ParameterGroup("vlm.decoder.*", lr=1e-4)]
    assert len(AdamW(lr=1e-4, groups=groups).build(root).param_groups) == 2


def test_a_glob_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"'vlm.visoin.\*' matches no parameter; names begin with vlm.decoder, ") as e:
        AdamW(groups=[ParameterGroup("vlm.visoin.*")]).build(Root())
    assert e.value.key == "model.optimizer.groups"
    with pytest.raises(ConfigError, match=r"'vision.\*' matches no parameter") as e:
        SFTStage(tiny_vlm(), frozen=["vlm.decoder.*", "vision.*"])
    assert e.value.key == "model.frozen"


def test_a_glob_over_frozen_parameters_is_no_error():
    """Freezing a part must not force an edit of the groups."""
    root = Root()
    root.vlm.vision.requires_grad_(False)
    AdamW(groups=[ParameterGroup("vlm.vision.*", lr=1.0, layer_decay=0.9)]).build(root)


def test_nothing_trainable_is_an_error():
    root = Root().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        AdamW().build(root)


def test_frozen_globs_freeze_exactly_what_they_match():
    stage = SFTStage(tiny_vlm(), frozen=["vlm.vision.*", "*.norm.weight"])
    for name, p in stage.named_parameters():
        assert p.requires_grad != (name.startswith("vlm.vision.") or name.endswith(".norm.weight")), name


BAD = float("nan"), float("inf"), -1.0


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_numbers_are_checked(key, value):
    with pytest.raises(ConfigError, match=rf"model.optimizer.{key}: {value} is not a number"):
        AdamW(**{key: value})


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("key", ["lr", "weight_decay", "layer_decay"])
def test_numbers_of_groups_are_checked(key, value):
    with pytest.raises(ConfigError, match=rf"groups\[a\*\].{key}: {value} is not a number"):
        AdamW(groups=[ParameterGroup("b"), ParameterGroup("a*", **{key: value})])


def test_a_step_moves_parameters_by_their_own_rates():
    """Adam's first step is the rate itself in each coordinate (minus the decay of the weight)."""
    module = nn.ParameterDict({"slow": nn.Parameter(torch.ones(2, 2)), "fast": nn.Parameter(torch.ones(3))})
    groups = [ParameterGroup("slow", lr=0.1, weight_decay=0.5), ParameterGroup("fast", lr=0.2)]
    optimizer = AdamW(groups=groups, eps=1e-12).build(module)
    for p in module.values():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    assert module["slow"].flatten().tolist() == pytest.approx([1 - 0.1 * 0.5 - 0.1] * 4)
    assert module["fast"].tolist() == pytest.approx([0.8] * 3)
