"""A folder of pictures and their captions as samples."""

import json
from io import BytesIO

import pytest
from PIL import Image

from bluelm_lightning.data.convert import from_image_folder
from bluelm_lightning.errors import ConfigError, DataError


def encode(color):
    out = BytesIO()
    Image.new("RGB", (8, 6), color).save(out, "JPEG")
    return out.getvalue()


JPEGS = [encode("red"), encode("green")]


@pytest.fixture
def pictures(tmp_path):
    for name, data in [("cat/red_square-2.jpg", JPEGS[0]), ("dog/b.JPG", JPEGS[1]), ("dog/c.png", b"none")]:
        (tmp_path / "zoo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "zoo" / name).write_bytes(data)
    return tmp_path / "zoo"


def outcome(samples):
    found, rows = [], iter(samples)
    while True:
        try:
            sample = next(rows)
            found.append((sample.id, sample.text, sample.images[0]))
        except DataError as error:
            found.append(str(error))
        except StopIteration:
            return found


def test_captions_from_names_and_folders(pictures):
    first, second, third = outcome(from_image_folder(pictures))
    assert first == ("cat/red_square-2.jpg", "<image>red square 2", JPEGS[0])
    assert second == ("dog/b.JPG", "<image>b", JPEGS[1])
    assert third == "dog/c.png: no picture: 4 bytes that begin with b'none'; leave it out"
    assert [one[1] for one in outcome(from_image_folder(pictures, "folder"))[:2]] == ["<image>cat", "<image>dog"]
    assert next(from_image_folder(pictures)).source == "zoo"
    assert next(from_image_folder(pictures, source="mine")).source == "mine"


def test_captions_from_text_files(pictures):
    (pictures / "cat/red_square-2.txt").write_text("a red square\n")
    (pictures / "dog/b.txt").write_text(" ")
    first, second, third = outcome(from_image_folder(pictures, "txt"))
    assert first[1] == "<image>a red square"
    assert second == "dog/b.JPG: its caption is empty: b.txt; write it"
    assert third == "dog/c.png: its caption cannot be read: c.txt: No such file or directory; write it"


def test_captions_from_metadata(pictures):
    records = [{"file_name": "dog/b.JPG", "text": "b"}, {"file_name": "dog/d.png", "text": "d"}, {"text": "e"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n{")
    first, missing, nameless, broken, *unlisted = outcome(from_image_folder(pictures, "jsonl"))
    assert first == ("dog/b.JPG", "<image>b", JPEGS[1])
    assert missing.startswith("metadata.jsonl:2: file_name: cannot be read: ")
    assert nameless.startswith("metadata.jsonl:3: has no file_name; write {")
    assert broken.startswith("metadata.jsonl:4: is not JSON")
    message = "no line of metadata.jsonl has this file_name; add one"
    assert unlisted == [f"cat/red_square-2.jpg: {message}", f"dog/c.png: {message}"]


def test_wrong_folders(pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"zoo has no metadata.jsonl"):
        from_image_folder(pictures, "jsonl")
    with pytest.raises(ConfigError, match=r"caption: 'json' is not one of filename, folder, txt, jsonl"):
        from_image_folder(pictures, "json")
    with pytest.raises(ConfigError, match=r"none is no folder"):
        from_image_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no pictures"):
        from_image_folder(tmp_path / "empty")
