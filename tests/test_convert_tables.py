"""Parquet files and Hugging Face data sets as samples."""

from io import BytesIO

import pytest
from PIL import Image

from bluelm_lightning.data.convert import from_dataset, write_shards
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import ConfigError, DataError


def encode(color, form):
    out = BytesIO()
    Image.new("RGB", (8, 6), color).save(out, form)
    return out.getvalue()


JPEGS = [encode(color, "JPEG") for color in ("red", "green", "blue")]
COLUMNS = {"question": "q", "answer": "a", "images": "pic"}


@pytest.fixture(scope="module")
def dataset():
    """Rows as on a hub: JPEG bytes in an Image column, one row without a picture, an answer that is a number."""
    from datasets import Dataset, Features, Image, Value

    pictures = [{"bytes": data, "path": None} for data in JPEGS]
    questions = ["hue?", "<image>hue?", "2+3?"]
    rows = {"q": questions, "a": [1, 2, 3], "pic": [*pictures[:2], None], "level": ["x", None, "z"]}
    features = Features({"q": Value("string"), "a": Value("int32"), "pic": Image(), "level": Value("string")})
    return Dataset.from_dict(rows, features=features)


def check(samples, name):
    first, second, third = samples
    assert first.messages == [{"role": "user", "content": "<image>hue?"}, {"role": "assistant", "content": "1"}]
    assert (first.images, second.images, third.images) == ([JPEGS[0]], [JPEGS[1]], [])  # the very bytes, never decoded
    assert (first.answer, first.meta, second.meta) == ("1", {"level": "x"}, {})
    assert third.messages[0]["content"] == "2+3?"
    assert {sample.source for sample in samples} == {name}
    assert len({sample.id for sample in samples}) == 3


def test_data_set_objects(dataset):
    check(list(from_dataset(dataset, **COLUMNS)), "dataset")
    check(list(from_dataset(dataset.to_iterable_dataset(), **COLUMNS, source="mine")), "mine")
    check(list(from_dataset(dataset.with_format("numpy"), **COLUMNS)), "dataset")


def test_files(dataset, tmp_path):
    dataset.to_parquet(tmp_path / "many/part-0.parquet")
    check(list(from_dataset(tmp_path / "many/part-0.parquet", **COLUMNS)), "part-0")
    dataset.save_to_disk(tmp_path / "saved")
    check(list(from_dataset(str(tmp_path / "saved"), **COLUMNS)), "saved")
    dataset.to_parquet(tmp_path / "many/part-1.parquet")
    samples = list(from_dataset(tmp_path / "many", **COLUMNS))
    assert [sample.where for sample in samples[2:4]] == ["part-0.parquet:2", "part-1.parquet:0"]
    assert write_shards(iter(samples), tmp_path / "out")["written"] == 6
    assert ShardSource(tmp_path / "out").manifest()["sources"] == {"many": 6}


def test_rows_in_dialects_and_lists_of_pictures(tmp_path):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageColumn

    turns = [[{"role": "user", "content": "which?"}, {"role": "assistant", "content": "b", "thinking": "not a"}]]
    column = Features({"messages": List({k: Value("string") for k in ("role", "content", "thinking")})})
    column["images"] = List(ImageColumn())
    rows = {"messages": turns, "images": [[{"bytes": data, "path": None} for data in JPEGS]]}
    Dataset.from_dict(rows, features=column).to_parquet(tmp_path / "x.parquet")
    (sample,) = from_dataset(tmp_path / "x.parquet")
    assert sample.images == JPEGS
    assert sample.messages == [{"role": "user", "content": "<image>" * 3 + "which?"}, turns[0][1]]


def test_plain_rows_with_pil_images_and_thinking(tmp_path):
    rows = [{"q": "?", "why": "so", "a": "b", "image": Image.new("CMYK", (4, 4)), "junk": b"x"}, {"cap": "c"}, "row"]
    sample = next(from_dataset(rows, question="q", answer="a", thinking="why", drop=["junk"]))
    assert sample.messages[1] == {"role": "assistant", "content": "b", "thinking": "so"}
    assert sample.images[0][:4] == b"\x89PNG"
    assert sample.meta == {}
    assert next(from_dataset(rows[1:], text="cap")).text == "c"
    with pytest.raises(DataError, match=r"row:0: the row is of type str; give dicts"):
        next(from_dataset(rows[2:]))
    with pytest.raises(DataError, match=r"row:0: needs exactly one of messages, conversations and text"):
        next(from_dataset(rows[1:]))
    with pytest.raises(DataError, match=r"row:0: junk: cannot be written as JSON: .*bytes.*; drop or convert it"):
        write_shards(from_dataset(rows[:1], question="q"), tmp_path, "raise")


def test_wrong_data_sets(dataset, tmp_path):
    from datasets import DatasetDict

    with pytest.raises(ConfigError, match=r"images: there is no column 'picture'; the columns are \['a', 'level"):
        next(from_dataset(dataset, question="q", images="picture"))
    with pytest.raises(ConfigError, match=r"has the splits \['test', 'train'\]; give one, data\['test'\]"):
        next(from_dataset(DatasetDict(train=dataset, test=dataset)))
    with pytest.raises(ConfigError, match="none does not exist; give a parquet file"):
        from_dataset(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"holds no .parquet"):
        from_dataset(tmp_path)
    for wrong in ({"question": "q", "text": "t"}, {"answer": "a"}, {"question": "q", "thinking": "t"}):
        with pytest.raises(ConfigError, match="thinking needs answer, answer needs question"):
            from_dataset(dataset, **wrong)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ConfigError, match=r"x.parquet cannot be read as parquet after 0 rows"):
        write_shards(from_dataset(tmp_path / "x.parquet"), tmp_path / "out")
