"""Every dialect of a record becomes the same Sample; what is wrong is named with place, field and both numbers."""

import re

import pytest

from bluelm_lightning.data.image_bytes import sniff
from bluelm_lightning.data.records import parse_record, to_record
from bluelm_lightning.errors import DataError

PNG, JPG, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x00\x00\x00\x00WEBP"
USER = {"role": "user", "content": "<image>sum?"}
THOUGHT = [USER, {"role": "assistant", "content": "19", "thinking": "9+10"}]
TEXT = {"type": "text", "text": "a"}
PLAIN = [USER, {"role": "assistant", "content": "19"}]


def chat(*turns, **more):
    return {"messages": [dict(zip(("role", "content", "thinking"), turn)) for turn in turns], **more}


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": THOUGHT}, THOUGHT),
        (chat(("user", "sum?"), ("assistant", "<think>\n9+10\n</think>\n\n19")), THOUGHT),
        (chat(("user", "sum?"), ("assistant", " <think>\n\n</think>\n19")), PLAIN),
        (chat(("user", "sum?", None), ("assistant", "19", "")), PLAIN),
        ({"messages": [USER, {"role": "assistant", "content": "19", "reasoning_content": "9+10"}]}, THOUGHT),
        ({"conversations": [{"from": "human", "value": "sum?"}, {"from": "gpt", "value": "19"}], "text": None}, PLAIN),
        ({"conversations": [{"from": "human", "value": "<image>sum?"}, {"from": "gpt", "value": "19"}]}, PLAIN),
        (chat(("user", [{"type": "image"}, {"type": "text", "text": "sum?"}]), ("assistant", "19")), PLAIN),
        (chat(("user", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "sum?"}])), [USER]),
        (chat(("developer", "Be brief."), ("user", "sum?")), [{"role": "system", "content": "Be brief."}, USER]),
    ],
)
def test_dialects(record, messages):
    sample = parse_record(record, [PNG], "a.tar:0")
    assert (sample.messages, sample.images, sample.where) == (messages, [PNG], "a.tar:0")
    assert parse_record(to_record(sample), [PNG], "a.tar:0") == sample  # what is written is read


def test_fields():
    record = {"id": 7, "source": "s", "text": "x", "task": "t", "answer": 1.5, "level": 3, "note": None}
    sample = parse_record(record, [], "w", "default", "default")
    assert (sample.id, sample.source, sample.task, sample.answer) == ("7", "s", "t", "1.5")
    assert (sample.text, sample.messages, sample.meta) == ("x", [], {"level": 3, "note": None})
    bare = parse_record({"text": "x"}, [], "w", "default id", "default source")
    assert (bare.id, bare.source, bare.task, bare.answer) == ("default id", "default source", "", None)


@pytest.mark.parametrize(
    ("record", "images", "text"),
    [
        ({"text": "a"}, 0, "a"),
        ({"text": "a"}, 2, "<image><image>a"),
        ({"text": "a<image>b<image>"}, 2, "a<image>b<image>"),
        ({"text": ""}, 1, "<image>"),
        ({"text": [{"type": "text", "text": "a"}, {"type": "image"}]}, 1, "a<image>"),
    ],
)
def test_texts(record, images, text):
    assert parse_record(record, [PNG] * images, "w").text == text


def test_pictures_go_to_the_first_user_turn_only():
    record = chat(("system", "s"), ("user", "a"), ("assistant", "<image> is a tag"), ("user", "b"))
    sample = parse_record(record, [PNG, JPG], "w")
    assert [turn["content"] for turn in sample.messages] == ["s", "<image><image>a", "<image> is a tag", "b"]
    assert record["messages"][1]["content"] == "a"  # the record is not changed


@pytest.mark.parametrize(
    ("record", "images", "message"),
    [
        ([], 0, "w: the record is of type list, not an object"),
        ({}, 0, "w: needs exactly one of messages, conversations and text: it has []"),
        ({"text": "", "messages": [USER]}, 0, "it has ['messages', 'text']"),
        ({"messages": []}, 0, "w: messages: is an empty list"),
        ({"messages": "hi"}, 0, "w: messages: is of type str; write a list of turns"),
        ({"messages": ["hi"]}, 0, "w: messages[0]: is of type str; write an object with role and content"),
        (chat(("user", "a"), ("tool", "b")), 0, "w: messages[1]: role 'tool' is not one of system, user, assistant"),
        ({"messages": [{"content": "a"}]}, 0, "w: messages[0]: role None is not one of"),
        ({"conversations": [{"from": 3, "value": "a"}]}, 0, "w: conversations[0]: role 3 is not one of"),
        (chat(("user", 3)), 0, "w: messages[0].content: is of type int; write a string or a list of parts"),
        (chat(("user", None)), 0, "w: messages[0].content: is of type None"),
        (chat(("user", ["a"])), 0, "w: messages[0].content[0]: is no part"),
        (chat(("user", [TEXT, {"type": "audio"}])), 0, "messages[0].content[1]: is no"),
        (chat(("user", [{"type": "text"}])), 0, "[0].content[0]: is no part"),
        (chat(("user", "a"), ("assistant", [{"type": "image"}])), 1, "messages[1].content: an assistant turn holds"),
        (chat(("user", "a", "hm")), 0, "w: messages[0].thinking: str in a turn of user; thinking is a string"),
        (chat(("assistant", "a", ["hm"])), 0, "w: messages[0].thinking: list in a turn of assistant"),
        (chat(("assistant", "<think>a", None)), 0, "w: messages[0].content: opens <think> and never closes it"),
        (chat(("assistant", "<think>a</think>b", "c")), 0, "w: messages[0]: thinks twice"),
        (chat(("assistant", "<think>a</think><think>b</think>c")), 0, "w: messages[0]: thinks twice"),
        (chat(("assistant", "a", "\ud83d")), 0, "w: messages[0].thinking: is not valid Unicode"),
        ({"text": "\ud83d"}, 0, "w: text: is not valid Unicode"),
        ({"text": {}}, 0, "w: text: is of type dict"),
        ({"text": "", "id": []}, 0, "w: id: is of type list; write a string"),
        ({"text": "", "answer": True}, 0, "w: answer: is of type bool; write a string"),
        ({"text": "<image>"}, 0, "w: 1 <image> placeholders but 0 images"),
        ({"text": "<image>"}, 2, "w: 1 <image> placeholders but 2 images; make the numbers equal or remove all"),
        (chat(("user", "<image>"), ("user", "<image><image>")), 2, "w: 3 <image> placeholders but 2 images"),
        (chat(("assistant", "a")), 2, "w: 2 images but no user turn to put them in"),
    ],
)
def test_what_is_wrong(record, images, message):
    with pytest.raises(DataError, match=re.escape(message)):
        parse_record(record, [PNG] * images, "w")


def test_pictures_are_told_by_their_bytes():
    assert [sniff(data) for data in (PNG, JPG, WEBP, b"GIF89a", b"", b"RIFF\x00\x00\x00\x00WAVE")] == [
        "png",
        "jpg",
        "webp",
        None,
        None,
        None,
    ]
    for bad in (b"", b"<html>", "text", None):
        with pytest.raises(DataError, match="w: image 1 is not PNG, JPEG or WebP"):
            parse_record({"text": ""}, [PNG, bad], "w")
