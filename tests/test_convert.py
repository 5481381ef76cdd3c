"""Converters: what goes in = what is written + what is dropped, and every dropped record is named."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from bluelm_lightning.data.convert import from_jsonl, write_shards
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample


def encode(color, form="PNG"):
    out = BytesIO()
    Image.new("RGB", (8, 6), color).save(out, form)
    return out.getvalue()


RED, BLUE = encode("red"), encode("blue", "JPEG")
URI = "data:image/png;base64," + base64.b64encode(RED).decode()
TURNS = [{"role": "user", "content": "<image>hue?"}, {"role": "assistant", "content": "red"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/red.png").write_bytes(RED)
    (tmp_path / "pics/blue.jpg").write_bytes(BLUE)
    return tmp_path


def lines(path, *records):
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records))
    return path


def outcome(samples):
    """Samples, and the message in the place of each bad one."""
    found, rows = [], iter(samples)
    while True:
        try:
            found.append(next(rows))
        except DataError as error:
            found.append(str(error))
        except StopIteration:
            return found


def test_jsonl_in_every_dialect(folder):
    chat = [{"from": "human", "value": "<image>\nhue?"}, {"from": "gpt", "value": "red"}]
    parts = [{"type": "text", "text": "hue?"}]
    path = lines(
        folder / "llava.jsonl",
        {"id": "0", "conversations": chat, "image": "pics/red.png"},
        {"messages": TURNS, "images": ["pics/blue.jpg"], "source": "own", "answer": "red"},
        "",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}, *parts]}]},
        {"messages": [{"role": "user", "content": [*parts, {"type": "image", "image": "pics/red.png"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}, *parts]}], "image": URI},
        {"text": "no picture", "level": 3},
    )
    first, second, third, fourth, fifth, sixth = from_jsonl(path)
    assert (first.id, first.source, first.images, first.where) == ("0", "llava", [RED], "llava.jsonl:1")
    assert (second.id, second.source, second.images, second.answer) == ("llava-000002", "own", [BLUE], "red")
    assert (third.messages[0]["content"], third.images, third.where) == ("<image>hue?", [RED], "llava.jsonl:4")
    assert (fourth.messages[0]["content"], fourth.images) == ("hue?<image>", [RED])
    assert (fifth.messages[0]["content"], fifth.images) == ("<image>hue?", [RED])
    assert (sixth.text, sixth.images, sixth.meta) == ("no picture", [], {"level": 3})
    assert {sample.source for sample in from_jsonl(path, source="mine")} == {"mine"}


def test_a_json_list_and_an_image_root(folder):
    path = folder / "a" / "llava.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"text": "x", "image": "red.png"}, {"text": "y"}], indent=1))
    assert [(s.text, s.where) for s in from_jsonl(path, folder / "pics")] == [
        ("<image>x", "llava.json:1"),
        ("y", "llava.json:2"),
    ]
    path.write_text("[{")
    with pytest.raises(ConfigError, match=r"llava.json: is not JSON.*; a file that begins with . is one JSON list"):
        next(from_jsonl(path))
    with pytest.raises(ConfigError, match=r"none.jsonl does not exist"):
        from_jsonl(folder / "none.jsonl")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": ', "bad.jsonl:2: is not JSON: Expecting value: line 1 column 9"),
        ("[]", "bad.jsonl:2: the record is of type list, not an object"),
        ({"messages": TURNS}, "bad.jsonl:2: 1 <image> placeholders but 0 images"),
        ({"text": "", "image": "none.png"}, "bad.jsonl:2: image[0]: cannot be read: .*none.png: No such file"),
        ({"text": "", "images": ["pics/red.png", "pics"]}, r"images\[1\]: cannot be read: .*Is a directory"),
        ({"text": "", "image": "http://x/y.png"}, r"bad.jsonl:2: image\[0\]: is a URL: http://x/y.png; download it"),
        ({"text": "", "image": "data:image/png;base64,!!"}, r"bad.jsonl:2: image\[0\]: is a broken data URI"),
        ({"text": "", "image": "data:image/png,abc"}, r"bad.jsonl:2: image\[0\]: is a broken data URI: no ';base64,'"),
        ({"text": "", "image": "bad.jsonl"}, r"bad.jsonl:2: image\[0\]: no picture: 62 bytes that begin with b'{"),
        ({"text": "", "image": 3}, r"bad.jsonl:2: image\[0\]: is of type int; give a path"),
        ({"text": "", "image": "a\0b"}, r"bad.jsonl:2: image\[0\]: cannot be read: .*null byte"),
        ({"text": "", "image": URI, "images": [URI]}, "bad.jsonl:2: has images in images and image; keep one"),
    ],
)
def test_bad_records_are_named_and_the_rest_is_read(folder, record, message):
    before, bad, after = outcome(from_jsonl(lines(folder / "bad.jsonl", {"text": "1"}, record, {"text": "3"})))
    assert (before.text, after.text) == ("1", "3")
    with pytest.raises(DataError, match=message.replace("image[0]", r"image\[0\]")):
        raise DataError(bad)


def test_write_shards_counts(folder):
    bad = [{"text": "<image>", "image": []}, "{", {"text": "<image><image>"}, "{nonsense"]
    path = lines(folder / "a.jsonl", {"text": "1"}, *bad, {"text": "6", "image": "pics/red.png"})
    report = write_shards(from_jsonl(path), folder / "out", samples_per_shard=1)
    assert report["in"] == 6
    assert report["written"] == 2
    assert report["dropped"] == {"# <image> placeholders but # images": 2, "is not JSON": 2}
    assert [record[:10] for record in report["dropped_records"]] == [f"a.jsonl:{line}:" for line in (2, 3, 4, 5)]
    assert json.loads((folder / "out/manifest.json").read_text())["report"] == report
    source = ShardSource(folder / "out")
    expected = [replace(sample, where="") for sample in outcome(from_jsonl(path)) if isinstance(sample, Sample)]
    assert [replace(source[i], where="") for i in range(len(source))] == expected


def test_write_shards_stops_when_told_or_when_nothing_is_left(folder):
    path = lines(folder / "a.jsonl", {"text": "1"}, "{", {"text": "3"})
    with pytest.raises(DataError, match=r"a.jsonl:2: is not JSON"):
        write_shards(from_jsonl(path), folder / "out", on_error="raise")
    with pytest.raises(DataError, match="writing was cut off"):
        ShardSource(folder / "out")
    with pytest.raises(DataError, match=r"out2: nothing to write, 1 records were dropped; the first: a.jsonl:1:"):
        write_shards(from_jsonl(lines(path, "{")), folder / "out2")
    with pytest.raises(ConfigError, match=r"on_error: 'skip' is not one of report, raise"):
        write_shards([], folder / "out3", on_error="skip")


def test_a_generator_that_raised_is_not_taken_for_finished(folder):
    """After raising, a generator only says that it is over: counting on would lose what it had left."""

    def generator():
        yield Sample("0", "s", text="0")
        raise DataError("broken", "mine:1")

    with pytest.raises(DataError, match="mine:1: broken"):
        write_shards(generator(), folder / "out")
