"""Folders of shards: paths that mean several, writers that stop half way, folders that are taken already."""

import os

import pytest

from bluelm_lightning.data.shards import ShardSource, ShardWriter
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Sample


def write(folder, num=6, stop_at=None, **options):
    with ShardWriter(folder, samples_per_shard=2, **options) as writer:
        for i in range(num):
            if i == stop_at:
                raise KeyboardInterrupt
            writer.write(Sample(f"{i}", "s", text=f"text {i}"))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "f")


def texts(path):
    source = ShardSource(path)
    return [source[i].text[-1] for i in range(len(source))]


def test_paths(folder, monkeypatch):
    assert texts(f"{folder}/shard-*.tar") == [*"012345"]
    assert texts(f"{folder}/shard-{{000001..000002}}.tar") == [*"2345"]
    assert texts([f"{folder}/shard-000002.tar", folder / "shard-000000.tar"]) == [*"4501"]
    monkeypatch.chdir(folder)
    source = ShardSource("shard-000001.tar")
    monkeypatch.chdir("/")
    assert source[0].text == "text 2"
    assert source[0].where == "f/shard-000001.tar:000000002"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{f}/none", "none does not exist"),
        ("{f}/none*.tar", "no shards in '.*none.*'; give a folder"),
        ("{f}/shard-{{000002..000003}}.tar", "shard-000003.tar does not exist"),
        ("{f}/empty", "empty holds no .tar"),
        ("{f}/manifest.json", "manifest.json is no .tar"),
        ("pipe:cat {f}/shard-000000.tar", "is a URL; download the shards"),
        ("https://example.org/x.tar", "is a URL; download the shards"),
    ],
)
def test_wrong_paths(folder, path, message):
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        ShardSource(path.format(f=folder))


def test_one_shard_twice(folder):
    with pytest.raises(ConfigError, match=r"shard-000001.tar is named twice"):
        ShardSource([str(folder), f"{folder}/shard-000001.tar"])
    with pytest.raises(ConfigError, match="no shards in"):
        ShardSource([])


def test_a_writer_that_stops_half_way_is_noticed(tmp_path):
    folder = tmp_path / "f"
    with pytest.raises(KeyboardInterrupt):
        write(folder, stop_at=5)
    assert sorted(os.listdir(folder)) == [
        "manifest.json",
        "shard-000000.idx.json",
        "shard-000000.tar",
        "shard-000001.idx.json",
        "shard-000001.tar",
    ]
    with pytest.raises(DataError, match="its writing was cut off; write it again"):
        ShardSource(folder)
    assert texts(f"{folder}/*.tar") == [*"0123"]
    assert texts(write(folder, num=2, overwrite=True)) == [*"01"]


def test_a_missing_shard_is_noticed(folder):
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"lacks \['shard-000001.tar'\] of its manifest.json; copy the folder again"):
        ShardSource(folder)


def test_a_taken_folder(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / ".shard-000007.tar.1.tmp").write_text("a killed writer's")
    with pytest.raises(ConfigError, match="already holds 3 shards; choose another folder, or set overwrite"):
        write(folder)
    write(folder, num=1, overwrite=True, prefix="train")
    names = ["manifest.json", "notes.txt", "train-000000.idx.json", "train-000000.tar"]
    assert sorted(os.listdir(folder)) == names
    (folder / "other.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds other.tar, written by others"):
        write(folder, overwrite=True)
    assert sorted(os.listdir(folder)) == sorted([*names, "other.tar"])


def test_a_manifest_of_others_stays(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ConfigError, match="already holds 0 shards"):
        write(tmp_path)
    with pytest.raises(ConfigError, match=r"holds manifest.json, written by others"):
        write(tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_broken_manifests(folder):
    (folder / "manifest.json").write_text('{"complete": true, "shards": [{"file": "shard-000000.tar"}]}')
    with pytest.raises(DataError, match=r"manifest.json: a shard in it lacks file, bytes or sha256"):
        ShardSource(folder)
    (folder / "manifest.json").write_text('{"complete"')
    with pytest.raises(DataError, match=r"manifest.json: is not JSON"):
        ShardSource(folder)


@pytest.mark.parametrize("options", [{"prefix": "../x"}, {"prefix": ""}, {"samples_per_shard": 0}, {"max_bytes": 0}])
def test_wrong_settings(tmp_path, options):
    with pytest.raises(ConfigError, match=r"a prefix is of \[A-Za-z0-9_-\], sizes are at least 1"):
        ShardWriter(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
