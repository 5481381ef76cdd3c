"""Low-rank adapters: the reference of a policy, merged weights, and checkpoints with more than the policy in them."""

import pytest
import torch
from rl_runs import data_of, fit, stage_of
from test_rl_stage import Peek
from tiny import tiny_decoder, tiny_vit, worst

from bluelm_lightning.components import MLPProjector, VisionLanguageModel
from bluelm_lightning.components.adapters import LowRank, merged_state, switched_off
from bluelm_lightning.components.weights import init_from
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.rl.policy_loss import PolicyLoss
from bluelm_lightning.stages import AdamW, RLStage


def test_with_adapters_the_reference_is_the_policy_without_them(tmp_path):
    stage, peek = stage_of(), Peek()
    vlm = VisionLanguageModel(tiny_vit(2), MLPProjector(24, 32), tiny_decoder(seed=2, adapters=LowRank(4)))
    stage = RLStage(
        vlm, stage.rewards, PolicyLoss(kl_coef=0.1), Sampling(12, 1.0), stage.budget, stage.plan, AdamW(lr=3e-2),
        frozen=["vlm.vision.*", "vlm.projector.*"],
    )  # fmt: skip
    assert stage.reference is None
    before = {name: value.clone() for name, value in vlm.state_dict().items() if ".lora_" not in name}
    fit(stage, data_of(tmp_path), tmp_path, 6, peek)
    assert peek.logged[0]["policy/kl"] == 0.0
    assert peek.logged[-1]["policy/kl"] > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in vlm.state_dict().items() if name in before)
    batch = peek.batches[-1]
    with switched_off(vlm), torch.no_grad():
        off = vlm(batch)
    plain = tiny_decoder(seed=9)
    plain.model.load_state_dict(merged_state(vlm.decoder.model))
    merged = VisionLanguageModel(vlm.vision, vlm.projector, plain)
    with torch.no_grad():
        assert worst(merged(batch), vlm(batch)) < 1e-5
        assert not torch.allclose(off, vlm(batch))
    again = VisionLanguageModel(tiny_vit(3), MLPProjector(24, 32), tiny_decoder(seed=3, adapters=LowRank(4)))
    base = VisionLanguageModel(tiny_vit(2), MLPProjector(24, 32), tiny_decoder(seed=2))
    torch.save(base.state_dict(), tmp_path / "base.pt")
    init_from(again, tmp_path / "base.pt")  # a checkpoint without adapters
    again.vision.load_state_dict(vlm.vision.state_dict())
    with torch.no_grad():
        assert torch.equal(again(batch), base(batch))


def test_a_checkpoint_with_a_reference_hands_over_the_policy(tmp_path):
    stage = stage_of(algorithm=PolicyLoss(kl_coef=0.1))
    fit(stage, data_of(tmp_path), tmp_path, 3)
    other = stage_of().vlm
    init_from(other, tmp_path / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, stage.vlm.state_dict()[name]) for name, value in other.state_dict().items())
    assert not torch.equal(other.decoder.output_weight, stage.reference.decoder.output_weight)


def test_merging_for_another_engine_changes_no_weight():
    """Adding an update and taking it away again would not: at bfloat16 the rest is as large as the update."""
    model = tiny_decoder(adapters=LowRank(4)).model.to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merged_state(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    name = "model.layers.0.self_attn.q_proj"
    assert not torch.equal(merged[f"{name}.weight"], before[f"{name}.base_layer.weight"])
    merged[f"{name}.weight"].zero_()
    assert before[f"{name}.base_layer.weight"].equal(model.state_dict()[f"{name}.base_layer.weight"])
    with pytest.raises(ConfigError, match="the weight of lm_head is shared, its adapter is not; untie"):
        merged_state(tiny_decoder(tie_embeddings=True, adapters=LowRank(2, targets=["lm_head"])).model)


def test_targets_are_checked():
    with pytest.raises(ConfigError, match=r"no linear layer; there are .*q_proj"):
        tiny_decoder(adapters=LowRank(4, targets=["query"]))
    with pytest.raises(ConfigError, match="rank"):
        LowRank(0)
