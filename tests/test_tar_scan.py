"""Tars of others: which members make a sample, and what is said when they do not."""

import io
import tarfile

import pytest

from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.data.tar_scan import members
from bluelm_lightning.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"


def pack(path, files):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


LONG = "n" * 120


def test_long_names_and_things_between(tmp_path):
    """PAX headers, folders, dot files and members of no use, between and inside samples."""
    files = [(".hidden.json", b"{"), ("README", b""), (f"{LONG}.json", b'{"text": "x"}'), (f"{LONG}.cls", b"1")]
    files.append((f"{LONG}.png", PNG))
    files += [("b/__x.json", b'{"text": "y"}'), ("__meta__/a.json", b"{"), ("__.json", b'{"text": "z"}')]
    source = ShardSource(pack(tmp_path / "x.tar", files))
    assert [source[i].text for i in range(len(source))] == ["<image>x", "y", "z"]
    assert source[0].id == LONG


def test_members_apart_and_links(tmp_path):
    pack(tmp_path / "x.tar", [("a.png", PNG), ("b.png", PNG), ("a.json", b"{}")])
    with pytest.raises(DataError, match=r"x.tar:a.json: key a came before; .* neighbours: use tar --sort=name"):
        ShardSource(tmp_path)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.LNKTYPE, "b.png"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"x.tar:a.png: is a link or a sparse file"):
        ShardSource(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("k.json", b'{"text": ')], r"x.tar:k.json: is not JSON: Expecting value: line 1 column 10 .*begins with b'{"),
        ([("k.json", b'{"text": "\xff"}')], r"x.tar:k.json: is not JSON: 'utf-8' codec"),
        ([("k.json", b"[" * 100_000)], r"x.tar:k.json: is not JSON: maximum recursion"),
        ([("k.json", b"[1]")], "x.tar:k: the record is of type list, not an object"),
        ([("k.txt", b"\xff")], "x.tar:k.txt: is not UTF-8"),
        ([("k.png", PNG)], r"x.tar:k: has \['png'\] but no .json and no .txt"),
        ([("k.0.png", PNG), ("k.2.png", PNG), ("k.txt", b"")], r"x.tar:k: image 1 is missing; there are \[0, 2\]"),
        ([("k.0.png", PNG), ("k.0.jpg", PNG), ("k.txt", b"")], r"x.tar:k: has .*; name pictures KEY.0.png, KEY.1.png"),
        ([("k.left.png", PNG), ("k.txt", b"")], r"x.tar:k: has \['left.png', 'txt'\]; name pictures KEY.0.png"),
        ([("k.png", b"<html>"), ("k.txt", b"")], "x.tar:k: image 0 is not PNG, JPEG or WebP: b'<html>'"),
        ([("k.gif", b"GIF89a"), ("k.txt", b"")], "x.tar:k: image 0 is not PNG, JPEG or WebP: b'GIF89a'"),
        ([("k.txt", b"a"), ("k.TXT", b"b")], "sample 0: two members are named k.TXT"),
    ],
)
def test_wrong_members(tmp_path, files, message):
    source = ShardSource(pack(tmp_path / "x.tar", files))
    with pytest.raises(DataError, match=message):
        source[0]


def test_fast_and_slow_header_readers_agree():
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, data in [("k.json", b"{}"), ("k.0.png", PNG * 100), ("k.1.png", b"")]:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), 1.5
                tar.addfile(info, io.BytesIO(data))
            blob = out.getvalue()[: tar.offset]
        assert members(blob, "") == ("k", {"json": b"{}", "0.png": PNG * 100, "1.png": b""})


def test_a_size_that_leads_backwards(tmp_path):
    """tarfile follows a negative size to an earlier header, for ever."""
    head = bytearray(tarfile.TarInfo("a.json").tobuf())
    head[124:136] = (256**12 - 1024).to_bytes(12, "big")
    head[148:156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 256)
    (tmp_path / "x.tar").write_bytes(head + bytes(10_240))
    with pytest.raises(DataError, match=r"no tar header at byte 0 but b'a.json"):
        ShardSource(tmp_path)
