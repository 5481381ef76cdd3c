"""Shards: what is written is what is read, by us and by webdataset, in any order and from any process."""

import json
import os
import pickle
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bluelm_lightning.data import shards
from bluelm_lightning.data.shards import ShardSource, ShardWriter
from bluelm_lightning.types import Sample, Source


def picture(value, form="PNG"):
    out = BytesIO()
    Image.new("RGB", (8 + value % 5, 8), (value % 256, 0, 0)).save(out, form)
    return out.getvalue()


def make_samples(num):
    """Conversations, texts, several pictures of several formats, thinking, other alphabets, more than ten pictures."""
    samples = []
    for i in range(num):
        images = [picture(i + k, form) for k, form in enumerate(["PNG", "JPEG", "WEBP"] * 4)][: 12 if i == 3 else i % 4]
        question = {"role": "user", "content": "<image>" * len(images) + f"Was ist {i}? 蓝"}
        answer = {"role": "assistant", "content": str(i)} | ({"thinking": f"{i}+0"} if i % 2 else {})
        body = {"text": f"document {i}" + "<image>" * len(images)} if i % 5 == 4 else {"messages": [question, answer]}
        source = "odd" if i % 2 else "even"
        samples.append(Sample(f"a/b c.{i}", source, **body, images=images, task="t", answer="x", meta={"n": [i, None]}))
    return samples


def write(folder, samples, **options):
    with ShardWriter(folder, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


@pytest.fixture
def samples():
    return make_samples(23)


@pytest.fixture
def folder(tmp_path, samples):
    return write(tmp_path / "digits", samples, samples_per_shard=5)


def read_all(source):
    return [replace(source[i], where="") for i in range(len(source))]


def test_what_is_written_is_read(folder, samples):
    source = ShardSource(folder)
    assert isinstance(source, Source)
    assert (len(source), source.block_sizes, source.name) == (23, [5, 5, 5, 5, 3], "digits")
    assert read_all(source) == samples
    assert source[7].where == "digits/shard-000001.tar:000000007"
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_any_order_gives_the_same(folder, samples):
    source = ShardSource(str(folder), name="mine")
    for i in np.random.default_rng(0).permutation(23):
        assert replace(source[i], where="") == samples[i]
    assert source[-1] == source[22]
    assert source.name == "mine"
    for index in (23, -24):
        with pytest.raises(IndexError, match=f"sample {index} of 23 in mine"):
            source[index]


def test_webdataset_reads_our_shards(folder, samples):
    import webdataset as wds

    paths = sorted(str(path) for path in folder.glob("*.tar"))
    read = list(wds.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert [json.loads(one["json"])["id"] for one in read] == [sample.id for sample in samples]
    for one, sample in zip(read, samples):
        numbered = {int(name.split(".")[0]): data for name, data in one.items() if name[0].isdigit()}
        assert [numbered[k] for k in sorted(numbered)] == sample.images
    assert len({one["__key__"] for one in read}) == 23


def test_we_read_what_webdataset_writes(tmp_path):
    import webdataset as wds

    red, blue = picture(200), picture(1, "JPEG")
    answer = {"from": "gpt", "value": "<think>so</think>\nho"}
    chat = {"conversations": [{"from": "human", "value": "<image>\nhi"}, answer]}
    with wds.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "a/0", "jpg": blue, "json": chat, "cls": 3})
        tar.write({"__key__": "a/1", "png": red, "txt": "a red square"})
        tar.write({"__key__": "a/2", "jpg": blue, "txt": "a caption", "json": {"width": 8}})
        tar.write({"__key__": "a/3", "0.PNG": red, "1.jpeg": blue, "json": {"id": 7, "text": "two", "source": "s"}})
        tar.write({"__key__": "a/4", "txt": "words", "pyd": b"cos\nsystem\n(S'touch pwned'\ntR.", "pth": b"x"})
    source = ShardSource(tmp_path / "x.tar")
    first, second, third, fourth, fifth = (source[i] for i in range(5))
    assert first.messages == [
        {"role": "user", "content": "<image>\nhi"},
        {"role": "assistant", "content": "ho", "thinking": "so"},
    ]
    assert (first.id, first.source, first.images) == ("a/0", tmp_path.name, [blue])
    assert (second.text, second.images) == ("<image>a red square", [red])
    assert (third.text, third.meta) == ("<image>a caption", {"width": 8})
    assert (fourth.id, fourth.source, fourth.text, fourth.images) == ("7", "s", "<image><image>two", [red, blue])
    assert (fifth.text, fifth.images) == ("words", [])


def test_workers_read_with_handles_of_the_parent(folder, samples):
    """The parent's handles are open before the fork: a shared file position would mix up what two workers read."""
    from torch.utils.data import DataLoader

    source = ShardSource(folder)
    assert read_all(source) == samples
    many = [i % 23 for i in range(2300)]
    loader = DataLoader(source, batch_size=None, sampler=many, num_workers=2, multiprocessing_context="fork")
    for i, sample in zip(many, loader, strict=True):
        assert replace(sample, where="") == samples[i]
    assert source._open
    assert {os.lseek(file.descriptor, 0, os.SEEK_CUR) for file in source._open.values()} == {0}


def test_pickled_after_reading(folder, samples):
    source = ShardSource(folder)
    assert read_all(source) == samples
    copy = pickle.loads(pickle.dumps(source))
    assert not copy._open  # a descriptor means nothing in another process
    assert (read_all(copy), copy.fingerprint) == (samples, source.fingerprint)


def test_few_files_are_open(folder, samples, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN", 2)
    source = ShardSource(folder)
    before = len(os.listdir("/proc/self/fd"))
    assert read_all(source) == samples
    assert len(os.listdir("/proc/self/fd")) == before + 2
