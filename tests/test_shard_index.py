"""The index of a shard: made when missing, used when it fits, made again when the tar or the index changed."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from bluelm_lightning.data import shard_index
from bluelm_lightning.data.shards import ShardSource, ShardWriter
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample

PNG = b"\x89PNG\r\n\x1a\n"
STRIDE = 4 * 512  # a sample: header and data of KEY.0.png, header and data of KEY.json


@pytest.fixture
def shard(tmp_path):
    """Five samples and no index: 5 x 2,048 bytes, then zeros up to 20,480."""
    with ShardWriter(tmp_path) as writer:
        for i in range(5):
            writer.write(Sample(f"{i}", "s", text=f"<image>{i}", images=[PNG + b"picture"]))
    (tmp_path / "shard-000000.idx.json").unlink()
    (tmp_path / "manifest.json").unlink()
    path = tmp_path / "shard-000000.tar"
    assert path.stat().st_size == 20_480
    return path


def pack(path, files):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_index_is_made_again_when_the_tar_changed(shard):
    assert ShardSource(shard)[4].text == "<image>4"
    index = shard_index.load_index(shard_index.index_path(shard))
    assert index.spans.tolist() == [[STRIDE * i, STRIDE * (i + 1)] for i in range(5)]
    old = ShardSource(shard).fingerprint
    pack(shard, [(f"{i}.json", json.dumps({"text": f"{i}"}).encode()) for i in range(9)])  # padded to 10,240
    assert shard.stat().st_size == 10_240
    assert (len(ShardSource(shard)), ShardSource(shard)[8].text) == (9, "8")
    pack(shard, [(f"{i}.json", json.dumps({"text": f"{i}"}).encode()) for i in range(8)])  # the same size
    assert (len(ShardSource(shard)), ShardSource(shard)[7].text) == (8, "7")
    assert ShardSource(shard).fingerprint != old


def test_a_good_index_is_used(shard, monkeypatch):
    ShardSource(shard)
    monkeypatch.setattr(shard_index, "Scan", None)
    assert len(ShardSource(shard)) == 5


def test_fingerprint_of_a_tar_of_others(shard):
    """Without a manifest: names and times tell that it was packed anew."""
    pack(shard, [("1.json", b'{"text": "a"}')])
    old = ShardSource(shard).fingerprint
    pack(shard, [("2.json", b'{"text": "a"}')])
    assert ShardSource(shard).fingerprint != old


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spans": [[1]]}', '{"version": 1, "spans": "x"}', "\udcff"])
def test_a_broken_index_is_made_again(shard, text):
    shard_index.index_path(shard).write_text(text, errors="surrogateescape")
    assert len(ShardSource(shard)) == 5
    assert shard_index.load_index(shard_index.index_path(shard)) is not None


def test_an_index_of_lies(shard):
    ShardSource(shard)
    path = shard_index.index_path(shard)
    good = shard_index.load_index(path)
    lies = [([512, 1024], "the tar is damaged"), ([-5, 9], "cannot be read"), ([0, 99999], "ends at byte")]
    for span, message in lies:
        spans = np.array([span, *good.spans[1:]])
        lie = shard_index.ShardIndex(good.num_bytes, good.probe, good.headers, spans)
        shard_index.save_index(lie, path)
        with pytest.raises(DataError, match=f"sample 0: {message}"):
            ShardSource(shard)[0]
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))  # not ours to understand: made again
    assert ShardSource(shard)[0].text == "<image>0"


def test_a_folder_that_cannot_be_written(shard, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard_index.os, "replace", refuse)
    assert len(ShardSource(shard)) == 5
    assert os.listdir(shard.parent) == [shard.name]
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        shard_index.open_index(shard.parent)
