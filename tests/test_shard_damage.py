"""Damaged tars: an error that says where and how much could be read, never silence."""

import io
import os
import pickle
import tarfile

import pytest

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


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "ends at byte 0 without the end-of-archive marker; 0 whole"),
        (100, r"no tar header at byte 0 but b'00.*; 0 whole"),
        (512, "ends at byte 512, inside 000000000.0.png; 0 whole"),
        (1024, "ends at byte 1024 without the end-of-archive marker; 0 whole"),
        (3 * STRIDE, "ends at byte 6144 without the end-of-archive marker; 3 whole"),
        (3 * STRIDE + 100, "no tar header at byte 6144 but b'0000.*; 3 whole"),
        (3 * STRIDE + 512, "ends at byte 6656, inside 000000003.0.png; 3 whole"),
        (3 * STRIDE + 515, "ends at byte 6659, inside 000000003.0.png; 3 whole"),
        (3 * STRIDE + 1024, "ends at byte 7168 without the end-of-archive marker; 3 whole"),
        (3 * STRIDE + 1536, "ends at byte 7680, inside 000000003.json; 3 whole"),
        (4 * STRIDE + 2040, "ends at byte 10232, inside 000000004.json; 4 whole"),
        (5 * STRIDE, "ends at byte 10240 without the end-of-archive marker; 5 whole"),
        (5 * STRIDE + 512, "ends at byte 10752 without the end-of-archive marker; 5 whole"),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_cut(shard, size, message, indexed):
    if indexed:
        ShardSource(shard)
    os.truncate(shard, size)
    with pytest.raises(DataError, match=f"shard-000000.tar: the tar is damaged: .*{message} samples stand before"):
        ShardSource(shard)


def test_a_sample_that_was_cut_is_not_counted(tmp_path):
    """Also where its JSON came first and is whole."""
    pack(tmp_path / "x.tar", [("a.json", b"{}"), ("a.png", PNG), ("b.json", b"{}"), ("b.png", PNG)])
    os.truncate(tmp_path / "x.tar", 7 * 512 + 4)
    with pytest.raises(DataError, match=r"ends at byte 3588, inside b.png; 1 whole samples"):
        ShardSource(tmp_path)


def test_cut_in_the_padding_loses_nothing(shard):
    os.truncate(shard, 5 * STRIDE + 1024)
    assert len(ShardSource(shard)) == 5


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, bytes(512), "the header at byte 0 is all zeros, with data after it; 0 whole"),
        (2 * STRIDE, bytes(512), "the header at byte 4096 is all zeros, with data after it; 2 whole"),
        (2 * STRIDE + 1024, bytes(512), "the header at byte 5120 is all zeros, with data after it; 2 whole"),
        (2 * STRIDE, b"XXXX", "no tar header at byte 4096 but b'XXXX.*; 2 whole"),
        (4 * STRIDE + 1024 + 124, b"9" * 11, "no tar header at byte 9216 .*; 4 whole"),
        (5 * STRIDE + 2048, b"X", "the header at byte 10240 is all zeros, with data after it; 5 whole"),
    ],
)
def test_damaged_header(shard, at, data, message):
    overwrite(shard, at, data)
    with pytest.raises(DataError, match=f"the tar is damaged: {message} samples stand before"):
        ShardSource(shard)


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("data", [bytes(512), b"XXXX"])
@pytest.mark.parametrize("at", [0, 1024])
def test_damage_after_opening(shard, at, data):
    source = ShardSource(shard)
    overwrite(shard, 2 * STRIDE + at, data)
    with pytest.raises(DataError, match=r"shard-000000.tar: sample 2: the tar is damaged, or changed since"):
        source[2]
    assert source[3].text == "<image>3"


def test_cut_or_gone_after_opening(shard):
    source = ShardSource(shard)
    os.truncate(shard, 2 * STRIDE + 1024)
    with pytest.raises(DataError, match=r"sample 2: ends at byte 5120, inside this sample; copy it again"):
        source[2]
    elsewhere = pickle.loads(pickle.dumps(source))  # without the open handle
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000000.tar: sample 2: cannot be read: .*No such file"):
        elsewhere[2]


def test_not_a_tar(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataError, match=r"x.tar: the tar is damaged: no tar header at byte 0 but b'<html>"):
        ShardSource(tmp_path)
    pack(tmp_path / "x.tar", [("README", b"no sample")])
    with pytest.raises(DataError, match="1 shards without a single sample"):
        ShardSource(tmp_path)
