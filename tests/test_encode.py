"""The encoder: labels shifted once inside the document, image tokens counted, prompts that training has seen."""

import pickle

import pytest
import torch
from tiny import PER_TILE, TILE, png, prompt, question, tiny_encoder, tiny_tokenizer
from torch import Tensor

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import IGNORE, Encoded, ImageSpec, Sample

TOKENIZER = tiny_tokenizer()
SPECIAL = {token: TOKENIZER.convert_tokens_to_ids(token) for token in ("<image>", "</s>", "[|AI|]:", "<think>")}


def spelled(doc: Encoded) -> list[str]:
    return [TOKENIZER.decode([number]) for number in doc.ids.tolist()]


def learnt(doc: Encoded) -> str:
    """The tokens that carry loss, as text."""
    return TOKENIZER.decode(doc.labels[doc.labels != IGNORE].tolist())


def talk(images: int = 1, thinking: str | None = "4+5=9", **fields) -> Sample:
    sample = question("the sum?", "9", images, **fields)
    if thinking:
        sample.messages[-1]["thinking"] = thinking
    return sample


def asked(text: str, *images: bytes) -> Sample:
    sample = question(text)
    sample.images = list(images)
    return sample


# ---------------------------------------------------------------- labels
def test_a_small_conversation_by_hand():
    doc = tiny_encoder()(question("ab", "c12"))
    assert spelled(doc) == ["[|Human|]:", "a", "b", "\n", "[|AI|]:", "c", "1", "2", "</s>"]
    ids = doc.ids.tolist()
    assert doc.labels.tolist() == [IGNORE] * 4 + ids[5:] + [IGNORE]  # [|AI|]: predicts c, 2 predicts </s>
    assert (doc.id, doc.source, len(doc)) == ("s0", "tiny", 9)
    assert doc.tiles.shape == (0, 3, TILE, TILE)
    assert doc.image_positions.dtype == doc.ids.dtype == doc.labels.dtype == torch.int64


@pytest.mark.parametrize("thinking", [None, "4+5=9"])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_labels_are_the_next_ids(images, thinking):
    doc = tiny_encoder()(talk(images, thinking))
    carry = (doc.labels != IGNORE).nonzero().flatten()
    assert torch.equal(doc.labels[carry], doc.ids[carry + 1])
    assert int(doc.labels[-1]) == IGNORE  # nothing follows the end
    assert learnt(doc) == ("<think>4+5=9</think>9</s>" if thinking else "9</s>")
    assert int(doc.ids[carry[0]]) == SPECIAL["[|AI|]:"]


def test_a_document_learns_all_but_its_first_token_and_the_pictures():
    doc = tiny_encoder()(Sample(id="d", source="tiny", text="a red<image>circle", images=[png()]))
    assert spelled(doc)[:2] == ["a", " red"]
    assert learnt(doc) == " redcircle</s>"
    assert not set(doc.labels.tolist()) & {SPECIAL["<image>"]}
    empty = tiny_encoder()(Sample(id="d", source="tiny", text=""))
    assert (empty.ids.tolist(), empty.labels.tolist()) == ([SPECIAL["</s>"]], [IGNORE])


def test_all_assistant_turns_carry_loss():
    turns = [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    sample = Sample(id="m", source="tiny", messages=[{"role": role, "content": text} for role, text in turns])
    assert learnt(tiny_encoder()(sample)) == "2</s>4</s>"


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize(
    ("size", "max_grid", "thumbnail", "tiles"),
    [
        ((16, 16), 4, True, 1),
        ((32, 32), 4, False, 4),
        ((32, 32), 4, True, 5),
        ((64, 64), 2, True, 5),
        ((16, 64), 4, False, 4),
    ],
)
def test_a_picture_is_q_tokens_for_each_of_its_tiles(size, max_grid, thumbnail, tiles):
    encode = tiny_encoder(max_grid=max_grid, thumbnail=thumbnail)
    doc = encode(asked("<image>", png(*size)))
    assert doc.tiles.shape == (tiles, 3, TILE, TILE)
    assert doc.tiles.dtype == torch.uint8
    assert len(doc.image_positions) == tiles * PER_TILE
    assert torch.equal(doc.image_positions, (doc.ids == SPECIAL["<image>"]).nonzero().flatten())


def test_pictures_stand_where_their_placeholders_do_and_in_their_order():
    red, wide = png(seed=1), png(16, 32, seed=2)
    doc = tiny_encoder()(asked("a<image>b<image>", red, wide))
    shown = [["<im_start>", *["<image>"] * PER_TILE * tiles, "<im_end>"] for tiles in (1, 2)]
    wanted = ["[|Human|]:", "a", *shown[0], "b", *shown[1], "\n"]
    assert spelled(doc)[: len(wanted)] == wanted
    assert doc.image_positions.tolist() == [3, 4, 5, 6, *range(10, 18)]
    alone = [tiny_encoder()(asked("<image>", data)).tiles for data in (red, wide)]
    assert torch.equal(doc.tiles, torch.cat(alone))


def test_image_tokens_never_come_from_text():
    doc = tiny_encoder()(question("what is it?", "an <image> of </s>"))
    assert not len(doc.image_positions)
    assert doc.ids.tolist().count(SPECIAL["</s>"]) == 1


# ---------------------------------------------------------------- prompts
@pytest.mark.parametrize("thinking", [None, "4+5=9"])
@pytest.mark.parametrize("images", [0, 2])
def test_a_prompt_is_the_beginning_of_what_training_saw(images, thinking):
    encode = tiny_encoder(thumbnail=True)
    sample = talk(images, thinking)
    sample.messages = [
        {"role": "system", "content": "a red circle"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "thinking": "1+1=2"},
        *sample.messages,
    ]
    whole, start = encode(sample), encode.prompt(sample, thinking=bool(thinking))
    assert torch.equal(whole.ids[: len(start)], start.ids)
    assert spelled(start)[-1] == "[|AI|]:"
    rest = TOKENIZER.decode(whole.ids[len(start) :].tolist())
    assert rest == ("<think>4+5=9</think>9</s>" if thinking else "9</s>")
    assert torch.equal(whole.tiles, start.tiles)
    assert torch.equal(whole.image_positions, start.image_positions)
    assert (start.labels == IGNORE).all(), "a prompt carries no loss, nor do its earlier turns"


def test_the_other_mode_differs_by_the_switch_alone():
    thoughtful, direct = (prompt("the sum?", images=1, thinking=mode).ids.tolist() for mode in (True, False))
    switch = TOKENIZER.convert_tokens_to_ids("[|BlueThink|]")
    assert thoughtful[:-3] + thoughtful[-2:] == direct
    assert thoughtful[-3] == switch


# ---------------------------------------------------------------- what cannot be encoded
def expect(sample: Sample, message: str) -> None:
    for call in (tiny_encoder(), lambda sample: tiny_encoder().prompt(sample, thinking=False)):
        with pytest.raises(DataError, match=message):
            call(sample)


@pytest.mark.parametrize(("placeholders", "pictures"), [(1, 0), (0, 1), (2, 1), (1, 3)])
def test_placeholders_and_pictures_must_agree(placeholders, pictures):
    sample = question("<image>" * placeholders, where="train-000003.tar:k7")
    sample.images = [png()] * pictures
    expect(sample, f"^train-000003.tar:k7: {placeholders} <image> placeholders but {pictures} pictures; add or remove")


@pytest.mark.parametrize("data", [b"no picture", png()[:60], b""])
def test_a_broken_picture_is_named_by_sample_and_number(data):
    sample = question(images=2, where="a.tar:9")
    sample.images[1] = data
    expect(sample, "^a.tar:9: image 1: .")
    sample.where = ""
    expect(sample, "^s0: image 1: .")


# ---------------------------------------------------------------- in workers
def test_an_encoder_can_be_carried_to_a_worker():
    encode = tiny_encoder()
    there = pickle.loads(pickle.dumps(encode))
    assert torch.equal(there(talk()).ids, encode(talk()).ids)


def test_the_same_sample_gives_the_same_tensors_and_shares_none():
    encode = tiny_encoder()
    first, second = encode(talk()), encode(talk())
    tensors = [value for value in vars(first).values() if isinstance(value, Tensor)]
    assert len(tensors) == 4
    for name, value in vars(first).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(second, name))
    first.ids.zero_()
    assert second.ids.any()
    assert encode(talk()).ids.any()


def test_the_text_cache_is_bounded_and_changes_nothing():
    encode = Encoder(TOKENIZER, ImageSpec(TILE, PER_TILE))
    fresh = [encode(question(str(number))).ids for number in (3, 10_001)]
    for number in range(10_002):
        encode._text(str(number))
    assert len(encode._cache) <= 10_001
    assert all(torch.equal(encode(question(str(n))).ids, ids) for n, ids in zip((3, 10_001), fresh))


def test_texts_that_repeat_are_cached_and_documents_are_not():
    encode, samples = tiny_encoder(), [talk(), Sample(id="d", source="s", text="the sum is 12 " * 300)]
    first = [encode(sample).ids for sample in samples]
    assert set(encode._cache) == {"the sum?", "\n", "4+5=9", "9"}
    assert sum(ids.itemsize * len(ids) for ids in encode._cache.values()) < 100  # numbers, not objects
    assert all(torch.equal(encode(sample).ids, ids) for sample, ids in zip(samples, first))
