"""The folder of a pipeline: what is done again, what is refused, and that nothing of another run shows through."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
from curation_data import encoded, image, text, write_jsonl

from bluelm_lightning.data.curation import (
    BuildShards,
    CollectDataset,
    CollectJson,
    CollectText,
    Decontaminate,
    ExactDuplicates,
    LengthFilter,
    LocalEngine,
    Mix,
    NearDuplicates,
    Pipeline,
    RepetitionFilter,
)
from bluelm_lightning.data.curation.record import fold
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import ConfigError, DataError


def pipeline(folder: Path, *steps) -> Pipeline:
    return Pipeline(steps, folder / "out", LocalEngine(1), show=False)


def texts(folder: Path, *some: str) -> CollectJson:
    return CollectJson(write_jsonl(folder / "in.jsonl", [{"text": one} for one in some]))


def test_a_second_run_of_this_process_reads_the_new_data(tmp_path):
    asked = {"ev": str(tmp_path / "ev.jsonl")}
    for word in ("first", "second"):
        write_jsonl(tmp_path / "ev.jsonl", [{"question": f"a {word} question of the set?", "answer": "x"}])
        left = [text(0), f"{word} {text(1)}", f"a {word} question of the set?"]
        pipeline(tmp_path, texts(tmp_path, *left), Decontaminate(asked, ngram=4), BuildShards()).run(redo=True)
        shard = ShardSource(tmp_path / "out" / "03_BuildShards")
        assert sorted(sample.text for sample in map(shard.__getitem__, range(len(shard)))) == sorted(left[:2])


def test_redo_makes_cut_parts_again_and_reads_pictures_that_have_come(tmp_path):
    records = [{"image": f"{name}.png", "caption": name} for name in "ab"]
    (tmp_path / "a.png").write_bytes(encoded(image(0)))
    steps = CollectJson(write_jsonl(tmp_path / "in.jsonl", records)), BuildShards()
    assert pipeline(tmp_path, *steps).run()["steps"][0]["dropped"] == {"cannot be read": 1}
    (tmp_path / "b.png").write_bytes(encoded(image(1)))
    assert pipeline(tmp_path, *steps).run()["steps"][0]["out"] == 1  # done is done, until told to redo
    assert pipeline(tmp_path, *steps).run(redo=True)["steps"][0]["out"] == 2
    stored = tmp_path / "out" / "01_CollectJson" / "part-00000.bin"
    whole = stored.read_bytes()
    stored.write_bytes(whole[:100])
    shutil.rmtree(tmp_path / "out" / "02_BuildShards")
    with pytest.raises(DataError, match=r"ends inside a picture .* run the pipeline again with --redo"):
        pipeline(tmp_path, *steps).run()
    pipeline(tmp_path, *steps).run(redo=True)
    assert stored.read_bytes() == whole


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    own = tmp_path / "out" / "01_CollectJson" / "part-00000.jsonl"
    trips = [tmp_path / "out" / f"0{n}_trip" / "manifest.json" for n in (7, 8, 9)]
    for path, held in zip((own, *trips), ("{}", "{}", "[]", "no JSON")):
        path.parent.mkdir(parents=True)
        path.write_text(held)
    for redo in (False, True):
        with pytest.raises(ConfigError, match=r"output: .*01_CollectJson holds files that no pipeline has written"):
            pipeline(tmp_path, texts(tmp_path, "a")).run(redo)
    assert [path.read_text() for path in (own, *trips)] == ["{}", "{}", "[]", "no JSON"]


def test_steps_that_are_gone_are_not_left_beside_the_result(tmp_path):
    pipeline(tmp_path, texts(tmp_path, text(0)), BuildShards()).run()
    longer = pipeline(tmp_path, texts(tmp_path, text(0)), LengthFilter(), BuildShards())
    with pytest.raises(ConfigError, match=r"02_BuildShards was made by other steps than these; run with --redo"):
        longer.run()
    longer.run(redo=True)
    assert [path.name for path in sorted((tmp_path / "out").glob("0*"))][1:] == ["02_LengthFilter", "03_BuildShards"]


def test_an_input_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    steps = texts(tmp_path, "a"), LengthFilter(), Decontaminate({"x": "nowhere/x.jsonl"})
    with pytest.raises(ConfigError, match=r"steps\[2\].init_args.sets: nowhere/x.jsonl holds no"):
        pipeline(tmp_path, *steps).run()
    assert not list((tmp_path / "out").glob("0*"))


def test_evaluation_sets_are_folders_and_globs_too_and_have_names(tmp_path):
    for name in ("mmlu", "gsm"):
        item = {"question": f"which {name} question is it?", "answer": "x"}
        write_jsonl(tmp_path / "ev" / name / "test.jsonl", [item])
    leaks = texts(tmp_path, "which mmlu question is it?", "which gsm question is it?", text(0))
    paths = [str(tmp_path / "ev" / name / "test.jsonl") for name in ("mmlu", "gsm")]
    with pytest.raises(ConfigError, match="sets: two are called 'test'; give each a name"):
        Decontaminate(paths)
    for number, sets in enumerate((str(tmp_path / "ev"), str(tmp_path / "ev" / "*" / "test.jsonl"))):
        done = pipeline(tmp_path / f"{number}", leaks, Decontaminate({"all": sets}, ngram=4)).run()
        assert done["steps"][1]["dropped"] == {"evaluation text": 2}


def test_texts_that_cannot_be_samples_are_dropped_at_the_start(tmp_path):
    (tmp_path / "a.txt").write_text("The <image> element shows a picture.\n\nAnother paragraph.")
    (tmp_path / "b.txt").write_bytes("für".encode("latin-1"))
    steps = CollectText(str(tmp_path / "*.txt"), split="paragraph"), ExactDuplicates(), BuildShards()
    done = pipeline(tmp_path, *steps).run()["steps"]
    assert (done[0]["in"], done[-1]["out"]) == (3, 1)
    lines = [json.loads(line) for line in (tmp_path / "out/01_CollectText/dropped.jsonl").open()]
    assert [line["id"] for line in lines] == [f"{tmp_path.name}/a.txt:0", f"{tmp_path.name}/b.txt"]


def test_a_saved_data_set_of_several_splits(tmp_path):
    made = {name: datasets.Dataset.from_list([{"text": f"{name} {n}"} for n in range(3)]) for name in ("train", "dev")}
    path = str(tmp_path / "saved")
    datasets.DatasetDict(made).save_to_disk(path)
    assert pipeline(tmp_path, CollectDataset(path, split="dev")).run()["steps"][0]["out"] == 3
    assert "dev 2" in (tmp_path / "out/01_CollectDataset/part-00000.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"split: .* has no 'test'; it has dev, train"):
        pipeline(tmp_path / "other", CollectDataset(path, split="test")).run()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"path: .*broken.parquet cannot be loaded"):
        pipeline(tmp_path / "third", CollectDataset(str(tmp_path / "broken.parquet"))).run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BuildShards(shuffle_seed=-1), "shuffle_seed: -1 is below 0"),
        (lambda: BuildShards(prefix="a/b"), "prefix: 'a/b' begins no file name"),
        (lambda: Mix({"a": 1}, total=-3), "total: -3 is less than 1"),
        (lambda: RepetitionFilter(min_words=0), "min_words: 0 is too small"),
        (lambda: RepetitionFilter(ngram=0), "ngram: 0 is too small"),
        (lambda: NearDuplicates(max_rms=-1), "max_rms: -1 is below 0"),
        (lambda: CollectDataset("x", columns={"answer": "a"}), "columns: an answer needs its question"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_vowel_signs_are_parts_of_words():
    assert fold("दिन") != fold("दान")
    assert fold("É, e\u0301!") == "é é"
