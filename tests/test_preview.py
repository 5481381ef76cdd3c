"""The preview: the tokens the model sees, with those that carry loss marked."""

import re

from tiny import png, question, random_doc, tiny_encoder, tiny_tokenizer

from bluelm_lightning.data.packing import pack
from bluelm_lightning.data.preview import preview_batch
from bluelm_lightning.types import Sample

TOKENIZER = tiny_tokenizer()


def batch_of(*samples: Sample, rows: int = 1):
    docs = [tiny_encoder()(sample) for sample in samples]
    return pack([docs[row::rows] for row in range(rows)], 96, TOKENIZER.pad_token_id)


def thinking() -> Sample:
    sample = question("the sum?", "9", images=1, id="digits-7", source="digits")
    sample.messages[-1]["thinking"] = "4+5=9"
    return sample


def test_a_conversation_with_its_picture_in_plain_text():
    assert preview_batch(batch_of(thinking()), TOKENIZER, color=False) == (
        "[digits digits-7, 23 tokens]\n"
        "[|Human|]:<im_start><image x 4><im_end>the sum?[|BlueThink|]\n"
        "[|AI|]:«<think>4+5=9</think>9</s>»"
    )


def test_colours_are_green_for_loss_and_grey_for_the_rest():
    shown = preview_batch(batch_of(question("ab", "no")), TOKENIZER)
    green, grey = "\x1b[32m", "\x1b[90m"
    assert shown == f"[tiny s0, 7 tokens]\n{grey}[|Human|]:ab\n[|AI|]:\x1b[0m{green}no</s>\x1b[0m"


def test_a_document_is_marked_from_its_second_token():
    shown = preview_batch(
        batch_of(Sample(id="d", source="web", text="no<image>12", images=[png()])), TOKENIZER, color=False
    )
    assert shown.splitlines()[1] == "no<im_start><image x 4><im_end>«12</s>»"
    shown = preview_batch(batch_of(Sample(id="d", source="web", text="12")), TOKENIZER, color=False)
    assert shown.splitlines()[1] == "1«2</s>»"


def test_two_pictures_side_by_side_are_two():
    shown = preview_batch(batch_of(question(images=2)), TOKENIZER, color=False)
    assert shown.count("<image x 4>") == 2


def test_padding_and_neighbours_are_left_out_and_documents_counted():
    samples = [question("ab", "12", id=f"s{number}") for number in range(5)]
    for rows in (1, 2, 5):
        batch = batch_of(*samples, rows=rows)
        shown = preview_batch(batch, TOKENIZER, documents=3, color=False)
        assert re.findall(r"^\[tiny (s\d), 8 tokens\]$", shown, re.M) == batch.sample_ids[:3]
        assert "<pad>" not in shown
        assert shown.count("«12</s>»") == 3
    assert preview_batch(batch, TOKENIZER, documents=9, color=False).count("«") == 5


def test_an_empty_batch_shows_nothing():
    assert preview_batch(pack([[]], 8, 0), TOKENIZER) == ""


def test_any_ids_can_be_shown():
    """Of a vocabulary that is larger than the tokenizer's, too."""
    shown = preview_batch(pack([[random_doc(40, 2)]], 64, 0), TOKENIZER, color=False)
    assert shown.startswith("[tiny doc0, 40 tokens]\n<image x 8>")
