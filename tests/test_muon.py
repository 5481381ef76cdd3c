"""Muon: orthogonal updates for hidden matrices, AdamW's for the rest, one optimizer that a checkpoint restores."""

import math

import torch
from tiny import tiny_vlm
from torch import nn

from bluelm_lightning.stages import AdamW, Muon, ParameterGroup
from bluelm_lightning.stages.muon import is_hidden, orthogonalise


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vlm = tiny_vlm()


def gradients(root: Root, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in root.parameters():
        p.grad = torch.randn(p.shape, generator=rng)


def test_orthogonalise_keeps_directions_and_levels_lengths():
    rng = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 24), (2, 24, 8)):
        given = torch.randn(*shape, generator=rng)
        got = orthogonalise(given)
        lengths = torch.linalg.svdvals(got)
        assert lengths.min() > 0.6  # Newton-Schulz with these numbers levels to 0.7 .. 1.2, small ones less
        assert lengths.max() < 1.25
        left, _, right = torch.linalg.svd(given, full_matrices=False)
        core = left.mT @ got @ right.mT  # in the given matrix's own axes it is diagonal
        assert (core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4  # worst seen 4e-6


def test_hidden_matrices_and_nothing_else_take_muon_steps():
    root = Root()
    hidden = [name for name, p in root.named_parameters() if is_hidden(name, p)]
    assert any("blocks" in name for name in hidden)
    assert any("layers" in name for name in hidden)
    assert any(name.startswith("vlm.projector") for name in hidden)
    assert not any("embed" in name or "lm_head" in name for name in hidden)
    muon, adam = Root(), Root()
    one, two = Muon(lr=1e-2, weight_decay=0.1).build(muon), AdamW(lr=1e-2, weight_decay=0.1).build(adam)
    for _ in range(2):
        for model, optimizer in ((muon, one), (adam, two)):
            gradients(model, 1)
            optimizer.step()
    for (name, a), (_, b) in zip(muon.named_parameters(), adam.named_parameters()):
        assert torch.equal(a, b) != (name in hidden), name


def test_an_update_has_the_size_of_adamws():
    root = Root()
    before = {name: p.detach().clone() for name, p in root.named_parameters()}
    gradients(root, 0)
    Muon(lr=1e-2, weight_decay=0.0).build(root).step()
    for name, p in root.named_parameters():
        if is_hidden(name, p):
            size = (p - before[name]).square().mean().sqrt() / 1e-2
            # 0.2 * sqrt(max) * sqrt(rank / (rows * columns)), singular values within 0.6 .. 1.25 of 1
            full = 0.2 * math.sqrt(max(p.shape)) * math.sqrt(min(p.shape) / p.numel())
            assert 0.6 * full < size < 1.25 * full


def test_groups_keep_their_learning_rates():
    root = Root()
    built = Muon(lr=1e-2, groups=[ParameterGroup("vlm.vision.*", lr=1e-3)]).build(root)
    names = {id(p): name for name, p in root.named_parameters()}
    for group in built.param_groups:
        for p in group["params"]:
            assert group["lr"] == (1e-3 if names[id(p)].startswith("vlm.vision.") else 1e-2)
            assert group["muon"] == is_hidden(names[id(p)], p)
    assert sum(len(group["params"]) for group in built.param_groups) == len(names)


def test_a_restored_optimizer_goes_on_exactly():
    whole, broken = Root(), Root()
    one, two = Muon(lr=1e-2).build(whole), Muon(lr=1e-2).build(broken)
    for seed in range(3):
        gradients(whole, seed)
        one.step()
    for seed in range(2):
        gradients(broken, seed)
        two.step()
    again = Muon(lr=1e-2).build(broken)
    again.load_state_dict(two.state_dict())
    gradients(broken, 2)
    again.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters()))
