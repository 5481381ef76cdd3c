"""ShardWriter: the same bytes for the same samples, bounded shards, a manifest, nothing that could not be read back."""

import hashlib
import os
from dataclasses import replace

import pytest

from bluelm_lightning.data.shards import ShardSource, ShardWriter
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample

PNG = b"\x89PNG\r\n\x1a\n"  # shards never decode: the first bytes are enough


def make_samples(num):
    texts = (f"<image>document {i % 10} {'x' * 500 * (i % 4)}" for i in range(num))
    return [Sample(f"{i}", "odd" if i % 2 else "even", text=text, images=[PNG + b"."]) for i, text in enumerate(texts)]


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


def test_same_samples_same_bytes(tmp_path, samples, folder):
    again = write(tmp_path / "again", samples, samples_per_shard=5)
    for name in sorted(os.listdir(folder)):
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    assert ShardSource(again).fingerprint == ShardSource(folder).fingerprint
    entry = ShardSource(folder).manifest()["shards"][1]
    assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()


def test_fingerprint_sees_a_change_that_leaves_every_size_alone(tmp_path, samples, folder):
    samples[8].text = samples[8].text.replace("8", "9")
    changed = write(tmp_path / "changed", samples, samples_per_shard=5)
    assert [p.stat().st_size for p in changed.glob("*.tar")] == [p.stat().st_size for p in folder.glob("*.tar")]
    fingerprints = {ShardSource(path).fingerprint for path in (folder, changed, folder / "shard-000001.tar")}
    fingerprints.add(ShardSource([folder / "shard-000001.tar", folder / "shard-000000.tar"]).fingerprint)
    fingerprints.add(ShardSource([folder / "shard-000000.tar", folder / "shard-000001.tar"]).fingerprint)
    assert len(fingerprints) == 5


def test_manifest(folder, tmp_path):
    manifest = ShardSource(folder).manifest()
    assert (manifest["samples"], manifest["sources"]) == (23, {"even": 12, "odd": 11})
    assert manifest["bytes"] == sum(path.stat().st_size for path in folder.glob("*.tar"))
    other = write(tmp_path / "other", make_samples(1))
    (other / "shard-000000.tar").replace(folder / "shard-000003.tar")  # smaller than what the manifest knows
    manifest = ShardSource(folder).manifest()
    assert ["sha256" in shard for shard in manifest["shards"]] == [True, True, True, False, True]
    assert (manifest["samples"], "sources" in manifest) == (19, False)
    (folder / "manifest.json").unlink()
    assert "sources" not in ShardSource(folder).manifest()
    one = write(tmp_path / "folder", [Sample("0", "easy_vqa", text="a")])
    assert ShardSource(one).name == "easy_vqa"


def test_shards_are_bounded_by_bytes(tmp_path, samples):
    folder = write(tmp_path / "small", samples, max_bytes=20_000)
    assert max(path.stat().st_size for path in folder.glob("*.tar")) <= 30_720  # tar pads to 10,240
    assert len(list(folder.glob("*.tar"))) > 1
    assert read_all(ShardSource(folder)) == samples


def test_writer_refuses_what_could_not_be_read_back(tmp_path):
    with ShardWriter(tmp_path / "x") as writer:
        writer.write(Sample("0", "s", text="fine"))
        for bad, message in [
            (Sample("1", "s", text="<image>"), "sample 1: 1 <image> placeholders but 0 images"),
            (Sample("1", "s", text="", images=[b"GIF89a"]), "sample 1: image 0 is not PNG, JPEG or WebP: b'GIF89a'"),
            (Sample("1", "s"), "sample 1: needs exactly one of messages, conversations and text"),
            (Sample("1", "s", text="", meta={"when": {1j}}), "sample 1: when: cannot be written as JSON"),
            (Sample("1", "s", text="\ud800"), "sample 1: text: is not valid Unicode"),
            (Sample("1", "s", text="", meta={"answer": 1}), r"sample 1: meta keys \['answer'\] are names of fields"),
        ]:
            with pytest.raises(DataError, match=message):
                writer.write(bad)
    assert len(ShardSource(tmp_path / "x")) == 1
    with pytest.raises(ValueError, match="closed"):
        writer.write(Sample("2", "s", text="late"))


def test_tars_are_webdatasets_own_byte_for_byte():
    from io import BytesIO

    from webdataset.writer import TarWriter

    from bluelm_lightning.data.tar_write import end_archive, member

    theirs, ours = BytesIO(), BytesIO()
    writer = TarWriter(theirs, encoder=False, mtime=0, user="bluelm", group="bluelm")
    for n in range(12):
        found = {"json": b"{}" * n, "10.png": b"x" * (n * 300), "0.jpg": b"y" * 512}
        writer.write({"__key__": f"{n:09d}", **found})
        ours.writelines(member(f"{n:09d}.{suffix}", found[suffix]) for suffix in sorted(found))
    writer.close()
    end_archive(ours)
    assert ours.getvalue() == theirs.getvalue()
    with pytest.raises(DataError, match="does not fit a tar header"):
        member("x" * 101, b"")
