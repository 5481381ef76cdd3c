"""The pipeline of curation: counts and hashes, kills, settings that change, and YAML."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from curation_data import encoded, image, text, vqa, write_jsonl

from bluelm_lightning.cli.classes import parameters
from bluelm_lightning.cli.config_files import PACKAGED
from bluelm_lightning.cli.data import main
from bluelm_lightning.cli.data_run import build_pipeline
from bluelm_lightning.data.curation import CollectJson, LengthFilter, LocalEngine, Pipeline
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import ConfigError

OUTSIDE = ("timings.json", "report.md", ".lock")  # seconds stand in them


def digests(output: Path) -> dict[str, str]:
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name not in OUTSIDE]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """400 texts and 60 pictures, some of each bad or twice, and a pipeline over them, with many small parts."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [{"id": f"t{n}", "text": text(n % 370 if n % 3 else n)} for n in range(400)]
    for n in range(0, 400, 50):
        texts[n]["text"] = "short"
    rows = []
    for n in range(60):
        (folder / f"{n}.img").write_bytes(encoded(image(n % 50), "PNG" if n < 50 else "JPEG"))
        rows.append(vqa(f"What is number {n % 50} of the pictures?", "red", f"{n}.img", id=f"p{n}"))
    write_jsonl(folder / "texts.jsonl", texts)
    write_jsonl(folder / "pictures.jsonl", rows)
    steps = [
        {"class_path": "CollectJson", "init_args": {"paths": str(folder / "texts.jsonl"), "part_bytes": 12000}},
        {"class_path": "CollectJson", "init_args": {"paths": str(folder / "pictures.jsonl"), "part_bytes": 2000}},
        {"class_path": "LengthFilter", "init_args": {"min_characters": 20}},
        {"class_path": "PictureFilter"},
        {"class_path": "ExactDuplicates"},
        {"class_path": "NearDuplicates"},
        {"class_path": "Mix", "init_args": {"weights": {"texts": 3, "pictures": 1}, "max_repeats": 2}},
        {"class_path": "BuildShards", "init_args": {"samples_per_shard": 40}},
    ]
    settings = {"output": str(folder / "once"), "processes": 1, "steps": steps}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(settings))
    build_pipeline(settings, show=False).run()
    return folder


def test_counts_hashes_and_report(corpus):
    output = corpus / "once"
    report = json.loads((output / "report.json").read_text())
    into = None
    for step in report["steps"]:
        assert step["in"] + step["added"] == step["out"] + sum(step["dropped"].values())
        manifest = json.loads((output / step["step"] / "manifest.json").read_text())
        dropped = (output / step["step"] / "dropped.jsonl").read_text().splitlines()
        assert len(dropped) == sum(step["dropped"].values())
        assert not (output / step["step"] / ".work").exists()
        for part in manifest["parts"]:
            data = (output / step["step"] / part["file"]).read_bytes()
            assert (part["sha256"], part["records"]) == (hashlib.sha256(data).hexdigest(), data.count(b"\n"))
        if "Collect" not in step["step"]:
            assert step["in"] == (into or 460)
            into = step["out"]
    counts = {step["step"][3:]: (step["dropped"], step["added"]) for step in report["steps"]}
    assert counts["LengthFilter"] == ({"too short": 8}, 0)
    assert counts["ExactDuplicates"][0]["exact duplicate"] >= 19
    assert counts["NearDuplicates"] == ({"near duplicate": 10}, 0)
    assert counts["Mix"] == ({"beyond its source's share": counts["Mix"][0]["beyond its source's share"]}, 50)
    assert "| 06_NearDuplicates | " in (output / "report.md").read_text()


def test_the_shards_are_read_like_any(corpus):
    source = ShardSource(str(corpus / "once/08_BuildShards"))
    assert source.manifest()["sources"] == {"pictures": 100, "texts": 300}
    samples = [source[n] for n in range(len(source))]
    assert len(source.block_sizes) == 10
    for sample in samples:
        number = int(sample.id[1:].partition("#")[0])
        assert sample.images == ([(corpus / f"{number}.img").read_bytes()] if sample.source == "pictures" else [])
    mixed = [{sample.source for sample in samples[start : start + 40]} for start in range(0, 400, 40)]
    assert all(len(sources) == 2 for sources in mixed), "sources stand mixed in every shard"


def test_a_killed_run_goes_on_to_the_same_bytes(corpus):
    """Real processes, two workers, killed -9 three times when some more files are there."""
    output, rng = corpus / "killed", random.Random(0)
    command = [sys.executable, "-m", "bluelm_lightning.cli.data", "run", corpus / "pipeline.yaml"]
    command = [*map(str, command), "--output", str(output), "--processes", "2", "--quiet"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wanted = len(list(output.rglob("*"))) + rng.randint(1, 60)
        while process.poll() is None and len(list(output.rglob("*"))) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, check=True, capture_output=True).returncode == 0
    assert digests(output) == digests(corpus / "once")


def test_other_settings_are_refused_until_told_to_redo(corpus, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "a"}, {"id": "b", "text": "a longer text"}])

    def run(length, redo=False):
        steps = [CollectJson(path), LengthFilter(length), LengthFilter(1)]
        return Pipeline(steps, tmp_path / "out", LocalEngine(1), show=False).run(redo)

    assert run(1)["steps"][1]["out"] == 2
    kept = (tmp_path / "out/01_CollectJson/part-00000.jsonl").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"out/02_LengthFilter was made with other settings or inputs.*--redo"):
        run(2)
    assert run(2, redo=True)["steps"][2]["in"] == 1
    assert (tmp_path / "out/01_CollectJson/part-00000.jsonl").stat().st_mtime_ns == kept
    write_jsonl(tmp_path / "a.jsonl", [{"id": "c", "text": "another text"}])
    with pytest.raises(ConfigError, match="out/01_CollectJson was made with other settings or inputs"):
        run(2)


def test_two_runs_do_not_share_a_folder(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    pipeline = Pipeline([CollectJson(path)], tmp_path / "out", LocalEngine(1), show=False)
    (tmp_path / "out").mkdir()
    with pipeline._alone(), pytest.raises(ConfigError, match="another run writes to"):
        pipeline.run()


COLLECT = {"class_path": "CollectJson", "init_args": {"paths": "none.jsonl"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "steps: is no list of steps"),
        ({"stepz": []}, "stepz: there is no such key; the keys are output, steps,"),
        ({"engine": "spark"}, "engine: 'spark' is not one of local, ray"),
        ({"steps": [COLLECT, "LengthFitler"]}, r"steps\[1\].class_path: .*did you mean LengthFilter"),
        ({"steps": [COLLECT, "os.system"]}, r"steps\[1\].class_path: os.system is refused"),
        (
            {"steps": [COLLECT, {"class_path": "LengthFilter", "init_args": {"min": 1}}]},
            r"steps\[1\].init_args.min: LengthFilter has no such argument; it has min_characters",
        ),
        (
            {"steps": [COLLECT, {"class_path": "LengthFilter", "init_args": {"min_characters": "many"}}]},
            r"steps\[1\].init_args: .*min_characters",
        ),
        (
            {"steps": [COLLECT, {"class_path": "LanguageFilter", "init_args": {"languages": ["xx"]}}]},
            r"steps\[1\].init_args.languages: 'xx' is not one of en, de",
        ),
        ({"steps": ["Classify"]}, r"steps\[0\]: the first step brings no records in"),
        ({"steps": [COLLECT, "Classify", COLLECT]}, r"steps\[2\]: collects behind other steps"),
        ({"steps": [{"class_path": 3}]}, r"steps\[0\].class_path: 3 names no class"),
        ({"steps": [{"class_path": "CollectJson", "init_args": "a.jsonl"}]}, r"steps\[0\].init_args: .* is no mapping"),
        (
            {"steps": [COLLECT, {"class_path": "LengthFilter", "init_args": {"min_characters": None}}]},
            r"steps\[1\].init_args.min_characters: is null; give an integer",
        ),
    ],
)
def test_errors_name_the_key(change, message):
    with pytest.raises(ConfigError, match=message):
        build_pipeline({"output": "out", "steps": [COLLECT], **change})


def test_a_missing_input_is_one_line(tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "steps": [COLLECT]}))
    assert main(["run", str(tmp_path / "p.yaml")]) == 2
    said = "steps[0].init_args.paths: none.jsonl holds no .jsonl or .json; give a file, a folder or a glob"
    assert capsys.readouterr().err == f"bluelm-data: error: {said}\n"


def test_every_packaged_pipeline_is_built():
    paths = [path for path in (PACKAGED / "data").glob("*.yaml") if "steps" in yaml.safe_load(path.read_text())]
    assert paths
    for path in paths:
        pipeline = build_pipeline(yaml.safe_load(path.read_text()))
        for step in pipeline.steps:  # the constructor's arguments are the step's fingerprint
            assert set(step.settings()) == set(parameters(type(step))), type(step).__name__


def test_a_worker_does_not_import_torch(corpus):
    """All steps in one process, from collection to shards: torch would cost it 2 seconds and 200 MB."""
    script = f"""
import sys, yaml
from bluelm_lightning.data.curation import *
steps = yaml.safe_load(open({str(corpus / "pipeline.yaml")!r}))["steps"]
built = [globals()[step["class_path"]](**step.get("init_args", {{}})) for step in steps]
Pipeline(built, {str(corpus / "alone")!r}, LocalEngine(1), show=False).run()
print(sorted({{"torch", "lightning", "webdataset", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert digests(corpus / "alone") == digests(corpus / "once")
