"""bluelm-data: converts, shows, and ends with one clear line and exit code 2 when something is wrong."""

import json
import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image

from bluelm_lightning.cli.data import main


def picture():
    out = BytesIO()
    Image.new("RGB", (8, 6), "red").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics/sub").mkdir(parents=True)
    (tmp_path / "pics/red.png").write_bytes(picture())
    thought = {"role": "assistant", "content": "red", "thinking": "looks red"}
    chat = {"id": "c0", "messages": [{"role": "user", "content": "hue?"}, thought], "task": "hue", "answer": "red"}
    lines = [json.dumps({**chat, "image": "red.png"}), "{", json.dumps({"text": "words", "source": "other"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_convert_and_show(folder, capsys):
    args = ["convert", "jsonl", folder / "a.jsonl", folder / "out", "--image-root", folder / "pics"]
    code, out, _ = run(capsys, *args)
    assert (code, out.splitlines()[:2]) == (0, [f"2 of 3 records written to {folder}/out", "  dropped 1: is not JSON"])
    assert out.splitlines()[2].startswith("    a.jsonl:2: is not JSON: ")
    code, out, _ = run(capsys, "show", folder / "out")
    assert code == 0
    assert out.startswith("c0  source a  task hue  mode thinking\n  picture 0: 8 x 6 PNG, ")
    assert "\n  user: <image>hue?\n  assistant thinks: looks red\n  assistant: red\n" in out
    assert "\n\na-000003  source other  mode text\n  text: words\n" in out
    assert "\n2 samples in 1 shards, 0.0 MB\n  a: 1\n  other: 1\n" in out
    (folder / "out/manifest.json").unlink()
    code, out, _ = run(capsys, "show", folder / "out", "--count", 0)
    assert out == "2 samples in 1 shards, 0.0 MB\nsources of all 2 samples\n  a: 1\n  other: 1\n"
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err == f"bluelm-data: error: {folder}/out already holds 1 shards; choose another folder, or set overwrite\n"
    assert run(capsys, *args, "--overwrite", "--samples-per-shard", 1, "--source", "mine")[0] == 0
    assert run(capsys, "show", folder / "out", "--count", 0)[1] == "2 samples in 2 shards, 0.0 MB\n  mine: 2\n"


def test_parquet_and_images(folder, capsys):
    from datasets import Dataset

    Dataset.from_list([{"q": "2+3?", "a": 5, "x": 0, "pic": {"bytes": picture()}}]).to_parquet(folder / "t.parquet")
    columns = ["--question", "q", "--answer", "a", "--images", "pic", "--drop", "x"]
    assert run(capsys, "convert", "parquet", folder / "t.parquet", folder / "p", *columns)[0] == 0
    shown = run(capsys, "show", folder / "p")[1]
    assert "  user: <image>2+3?\n  assistant: 5\n" in shown
    assert "  answer: 5\n" in shown
    assert run(capsys, "convert", "images", folder / "pics", folder / "i", "--caption", "folder")[0] == 0
    shown = run(capsys, "show", folder / "i")[1]
    assert shown.startswith("red.png  source pics  mode text\n  picture 0: 8 x 6 PNG, ")
    assert "\n  text: <image>pics\n" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["convert", "jsonl", "none.jsonl", "out"], "none.jsonl does not exist or is no file; give a .jsonl"),
        (["convert", "jsonl", "a.jsonl", "out", "--on-error", "raise"], "a.jsonl:1: image[0]: cannot be read: red.png"),
        (["convert", "jsonl", "a.jsonl", "a.jsonl"], "[Errno 17] File exists: 'a.jsonl'"),
        (["convert", "parquet", "pics", "out"], "pics holds no .parquet; give a parquet file"),
        (["convert", "images", "pics/sub", "out"], "pics/sub holds no pictures"),
        (["show", "none"], "none does not exist"),
    ],
)
def test_errors_are_one_line(folder, capsys, monkeypatch, args, message):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"bluelm-data: error: {message}")


@pytest.mark.parametrize("args", [[], ["convert"], ["convert", "csv", "a", "b"], ["show"], ["show", "x", "--count=n"]])
def test_wrong_arguments(args, capsys):
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_importing_it_is_cheap():
    heavy = ["torch", "numpy", "PIL", "webdataset", "datasets", "pyarrow", "lightning"]
    code = f"import sys, bluelm_lightning.cli.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
