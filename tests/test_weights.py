"""Weights by component, strictly, and files that are read without running code."""

import pytest
import torch
from tiny import tiny_vlm

from bluelm_lightning.components.weights import init_from, read_state_dict
from bluelm_lightning.errors import ConfigError


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
    torch.save(donor.state_dict(), tmp_path / "vlm.pt")  # holds it under both names
    for file in ("vlm.safetensors", "vlm.pt"):
        counted = {row.component: row.parameters for row in init_from(model, tmp_path / file)}
        assert counted["decoder"] == donor.decoder.num_parameters(), file
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
