"""The model against transformers called the plain way, one sample at a time, with the same weights.

Errors are relative to the largest value. Tolerances are a few times the worst seen, which stands beside them.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny import PER_TILE, TILE, TINY_LM, VOCAB, random_doc, tiny_decoder, tiny_vit, tiny_vlm, worst
from torch import Tensor

from bluelm_lightning.components import MLPProjector, VisionLanguageModel
from bluelm_lightning.components.attention import DocumentLayout
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import DataError
from bluelm_lightning.stages.losses import reference_cross_entropy
from bluelm_lightning.types import IGNORE, Encoded, PackedBatch


def worst_gradient(mine: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """A key bias has no gradient but rounding: tensors are measured against a thousandth of the largest gradient."""
    assert mine.keys() == wanted.keys()
    floor = 1e-3 * max(float(g.abs().max()) for g in wanted.values())
    return max(worst(mine[name], wanted[name], floor) for name in wanted)


def take_gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    taken = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return taken


def by_document(hidden: Tensor, batch: PackedBatch) -> dict[str, Tensor]:
    flat, segments = hidden.flatten(0, 1), batch.segments.flatten()
    return {name: flat[segments == number] for number, name in enumerate(batch.sample_ids)}


# ---------------------------------------------------------------- the whole model
def reference_pair() -> tuple[VisionLanguageModel, torch.nn.ModuleDict]:
    """The same random weights in our model and in transformers' SigLIP and Llama with a projector by hand."""
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    from bluelm_lightning.components.vision_weights import siglip_to_timm

    torch.manual_seed(1)
    vision = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            image_size=TILE, patch_size=4, attn_implementation="eager",
        )
    )  # fmt: skip
    decoder = LlamaForCausalLM(LlamaConfig(**TINY_LM, vocab_size=VOCAB, attn_implementation="eager"))
    projector = torch.nn.ModuleDict({"first": torch.nn.Linear(96, 32), "second": torch.nn.Linear(32, 32)})
    reference = torch.nn.ModuleDict({"vision": vision, "projector": projector, "decoder": decoder})
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.05 * torch.randn_like(p))
    tower = tiny_vit(shape={"act_layer": "gelu_tanh"})
    tower.model.load_state_dict(
        {k: t for k, t in siglip_to_timm(vision.state_dict()).items() if k in tower.model.state_dict()}
    )
    vlm = VisionLanguageModel(tower, MLPProjector(24, 32), tiny_decoder())
    vlm.projector.mlp[0].load_state_dict(projector["first"].state_dict())
    vlm.projector.mlp[2].load_state_dict(projector["second"].state_dict())
    vlm.decoder.model.load_state_dict(decoder.state_dict())
    return vlm, reference


def reference_logits(reference: torch.nn.ModuleDict, doc: Encoded) -> Tensor:
    embeds = reference["decoder"].get_input_embeddings()(doc.ids)
    if len(doc.tiles):
        patches = reference["vision"]((doc.tiles / 255 - 0.5) / 0.5).last_hidden_state
        tokens = []
        for tile in patches.view(-1, 4, 4, 24):  # 2 x 2 neighbours, row by row
            for row in (0, 2):
                for col in (0, 2):
                    square = [tile[row, col], tile[row, col + 1], tile[row + 1, col], tile[row + 1, col + 1]]
                    first = F.gelu(reference["projector"]["first"](torch.cat(square)))
                    tokens.append(reference["projector"]["second"](first))
        embeds = embeds.clone()
        embeds[doc.image_positions] = torch.stack(tokens)
    return reference["decoder"](inputs_embeds=embeds[None]).logits[0]


def test_the_model_equals_transformers_parts_in_the_same_wiring():
    vlm, reference = reference_pair()
    docs = [random_doc(12, 2, 1), random_doc(5, 0, 2), random_doc(30, 3, 3), random_doc(20, 1, 4), random_doc(1, 0, 5)]
    batch = pack([docs[:2], docs[2:3], docs[3:]], 32, 0)
    logits = by_document(vlm(batch) @ vlm.decoder.output_weight.T, batch)
    with torch.no_grad():
        errors = [worst(logits[doc.id], reference_logits(reference, doc)) for doc in docs]
    assert max(errors) < 3e-6  # worst seen 4.7e-7


def test_gradients_of_the_model_equal_those_of_transformers_parts():
    vlm, reference = reference_pair()
    docs = [random_doc(12, 2, 1), random_doc(9, 0, 2), random_doc(17, 1, 3)]
    batch = pack([docs[:2], docs[2:]], 24, 0)
    labels = batch.labels.flatten()
    places = labels != IGNORE
    reference_cross_entropy(vlm(batch).flatten(0, 1)[places], vlm.decoder.output_weight, labels[places]).backward()
    total = int(places.sum())
    for doc in docs:
        (F.cross_entropy(reference_logits(reference, doc), doc.labels, reduction="sum") / total).backward()
    assert worst_gradient(take_gradients(vlm.decoder.model), take_gradients(reference["decoder"])) < 1e-5  # 1.2e-6
    pairs = [
        (vlm.projector.mlp[0].weight, reference["projector"]["first"].weight),
        (vlm.vision.model.patch_embed.proj.weight, reference["vision"].get_input_embeddings().weight),
    ]
    assert max(worst(a.grad, b.grad) for a, b in pairs) < 1e-5  # worst seen 1.2e-6


# ---------------------------------------------------------------- the decoder alone
FAMILIES = {
    "llama": ("llama", {}),
    "llama, one head for each query": ("llama", {"num_key_value_heads": 4}),
    "llama, one head for all queries": ("llama", {"num_key_value_heads": 1}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral, window of 5": ("mistral", {"sliding_window": 5}),
    "qwen2, window in the second layer": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    ),
    "gemma3, window and full layers": (
        "gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "smollm3": ("smollm3", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_decoder_equals_transformers_one_document_at_a_time(name):
    architecture, config = FAMILIES[name]
    decoder = tiny_decoder(architecture, config=config)
    reference = type(decoder.model)._from_config(decoder.model.config, attn_implementation="eager")
    reference.load_state_dict(decoder.model.state_dict())
    docs = [random_doc(length, seed=length) for length in (40, 3, 1, 12, 11, 25)]
    batch = pack([docs[:3], docs[3:]], 50, 0)
    layout = DocumentLayout(batch.cu_seqlens, batch.max_seqlen)
    hidden = decoder(decoder.embed(batch.ids), batch.positions, layout=layout)
    logits = by_document(hidden @ decoder.output_weight.T, batch)
    total = 0
    for doc in docs:
        mine, wanted = logits[doc.id], reference(input_ids=doc.ids[None]).logits[0]
        assert worst(mine, wanted) < 3e-6, doc.id  # worst seen 5.6e-7
        keep = doc.labels != IGNORE
        if keep.any():
            F.cross_entropy(wanted[keep], doc.labels[keep], reduction="sum").backward()
            total = total + F.cross_entropy(mine[keep], doc.labels[keep], reduction="sum")
    total.backward()
    assert worst_gradient(take_gradients(decoder.model), take_gradients(reference)) < 1e-5  # worst seen 5.6e-7


def test_the_window_matters_in_this_test():
    """Or the window cases above would pass without one."""
    docs = [random_doc(40)]
    batch = pack([docs], 40, 0)
    layout = DocumentLayout(batch.cu_seqlens, batch.max_seqlen)
    out = []
    for window in (5, 100):
        decoder = tiny_decoder("mistral", config={"sliding_window": window})
        out.append(decoder(decoder.embed(batch.ids), batch.positions, layout=layout))
    assert torch.allclose(out[0][0, :5], out[1][0, :5], atol=1e-6)
    assert not torch.allclose(out[0][0, 30:], out[1][0, 30:], atol=1e-2)


# ---------------------------------------------------------------- packed == unpacked
DOCS = [
    random_doc(3, 0, 1),
    random_doc(60, 4, 2, labelled=0.5),
    random_doc(2, 0, 3),
    random_doc(21, 2, 4),
    random_doc(20, 0, 5, labelled=0.3),
    random_doc(7, 1, 6),
    random_doc(33, 0, 7),
]
PACKINGS = {
    "one a row": ([[i] for i in range(7)], 60),
    "all in one row": ([list(range(7))], 146),
    "all in one row, backwards, padded": ([list(range(6, -1, -1))], 170),
    "three rows": ([[1], [6, 4, 2], [3, 5, 0]], 61),
    "an empty row": ([[1, 0], [], [2, 3, 4, 5, 6]], 90),
}


def logits_and_gradients(vlm: VisionLanguageModel, batches: list[PackedBatch]):
    logits: dict[str, Tensor] = {}
    total = sum(int((batch.labels != IGNORE).sum()) for batch in batches)
    for batch in batches:
        out = vlm(batch) @ vlm.decoder.output_weight.T
        (F.cross_entropy(out.flatten(0, 1), batch.labels.flatten(), reduction="sum") / total).backward()
        logits |= {name: rows.detach() for name, rows in by_document(out, batch).items()}
    return logits, take_gradients(vlm)


@pytest.fixture(scope="module")
def unpacked():
    vlm = tiny_vlm()
    return vlm, *logits_and_gradients(vlm, [pack([[doc]], len(doc), 0) for doc in DOCS])


@pytest.mark.parametrize("name", PACKINGS)
def test_packed_equals_unpacked(name, unpacked):
    vlm, logits, gradients = unpacked
    rows, width = PACKINGS[name]
    batch = pack([[DOCS[i] for i in row] for row in rows], width, 0)
    mine, mine_gradients = logits_and_gradients(vlm, [batch])
    assert mine.keys() == logits.keys()
    assert max(worst(mine[doc], logits[doc]) for doc in logits) < 3e-6  # worst seen 7e-7
    assert worst_gradient(mine_gradients, gradients) < 1e-5  # worst seen 7e-7


# ---------------------------------------------------------------- counting
def test_a_wrong_number_of_image_tokens_names_both_numbers_the_sample_and_the_fix():
    good, bad = random_doc(12, 1, 1), random_doc(20, 2, 2)
    bad.image_positions = bad.image_positions[:-2]
    batch = pack([[good, bad]], 40, 0)
    with pytest.raises(DataError, match=r"sample doc2: 6 image tokens but 2 tiles x 4 = 8 features; .*=4") as info:
        tiny_vlm()(batch)
    assert info.value.where == "sample doc2"


def test_two_wrong_counts_that_cancel_out_are_seen():
    """Or the features of one sample would stand in the other."""
    few, many = random_doc(20, 2, 1), random_doc(20, 1, 2)
    few.image_positions = torch.arange(PER_TILE)
    many.image_positions = torch.arange(2 * PER_TILE)
    with pytest.raises(DataError, match=r"sample doc1: 4 image tokens but 2 tiles x 4 = 8 features"):
        tiny_vlm()(pack([[few, many]], 40, 0))


def test_tiles_in_another_order_than_their_tokens_are_seen():
    batch = pack([[random_doc(12, 1, 1), random_doc(20, 1, 2)]], 40, 0)
    batch.image_positions = batch.image_positions.roll(PER_TILE)
    with pytest.raises(DataError, match="not in the same order"):
        tiny_vlm()(batch)
