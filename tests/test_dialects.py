"""Captions, VQA, pages of OCR and GUI screens -> turns and texts; and the collectors that read them."""

import json

import pytest
from curation_data import encoded, image, run, write_jsonl

from bluelm_lightning.data.convert import from_jsonl, write_shards
from bluelm_lightning.data.curation import (
    Collect,
    CollectDataset,
    CollectShards,
    CollectText,
    LengthFilter,
    LocalEngine,
    Pipeline,
)
from bluelm_lightning.data.dialects import as_conversation
from bluelm_lightning.errors import ConfigError, DataError


def turns(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"caption": "a cat"}, {"text": "a cat"}),
        ({"captions": ["a cat", "one cat"]}, {"text": "a cat"}),
        ({"caption": None, "captions": ["a cat"]}, {"text": "a cat", "caption": None}),
        ({"question": "q", "answers": ["", "", "red"]}, {"messages": turns("q", "red"), "answer": "red"}),
        ({"question": "q", "choices": ["x", "y"]}, {"messages": turns("q\nA. x\nB. y")}),  # a hidden answer
        ({"question": "hue?", "answer": "red"}, {"messages": turns("hue?", "red"), "answer": "red"}),
        ({"question": "hue?"}, {"messages": turns("hue?")}),
        ({"question": "q", "answers": ["a", "b", "b"]}, {"messages": turns("q", "b"), "answer": "b"}),
        ({"question": "q", "answers": [{"answer": "a"}]}, {"messages": turns("q", "a"), "answer": "a"}),
        (
            {"question": "q", "choices": ["x", "y"], "answer": 1},
            {"messages": turns("q\nA. x\nB. y", "B"), "answer": "B"},
        ),
        (
            {"question": "q", "options": ["x", "y"], "answer": "b"},
            {"messages": turns("q\nA. x\nB. y", "B"), "answer": "B"},
        ),
        (
            {"question": "q", "choices": ["x", "y"], "answer": "x"},
            {"messages": turns("q\nA. x\nB. y", "A"), "answer": "A"},
        ),
        ({"lines": ["To", {"text": "it", "box": [1, 2, 3, 4]}]}, {"text": "To\nit", "boxes": [[1, 2, 3, 4]]}),
        ({"words": ["To", "it"]}, {"text": "To it"}),
        ({"ocr": "To\nit", "page": 3}, {"text": "To\nit", "page": 3}),
        (
            {"elements": [{"type": "button", "text": "Go", "box": [0, 50, 50, 200]}], "size": [100, 200]},
            {"messages": turns('Where is the button "Go"?', "[0, 250, 500, 1000]"), "size": [100, 200]},
        ),
        ({"messages": [], "question": "kept as it is"}, {"messages": [], "question": "kept as it is"}),
    ],
)
def test_what_keys_mean(record, wanted):
    before = json.dumps(record)
    assert as_conversation(record, "a:1") == wanted
    assert json.dumps(record) == before


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": 3}, "a:1: caption: 3 is no text"),
        ({"question": "q", "choices": ["x"], "answer": 0}, "a:1: choices: .* are no choices"),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "a:1: answer: 2 is none of 2 choices"),
        ({"question": "q", "choices": ["x", "y"], "answer": "AB"}, "a:1: answer: 'AB' is none of 2 choices"),
        ({"question": "q", "answers": []}, "a:1: answer: has no answer"),
        ({"lines": [{"box": [1, 2, 3, 4]}]}, "a:1: lines: has an item without text"),
        ({"elements": [{"text": "Go", "box": [0, 0, 1, 1]}]}, "a:1: size: None is no size"),
        (
            {"elements": [{"text": "Go", "box": [0, 0, 5, 1]}], "size": [4, 4]},
            r"elements\[0\]: box .* outside of 4 x 4",
        ),
        ({"elements": [{"box": [0, 0, 1, 1]}], "size": [4, 4]}, r"elements\[0\]: has neither text nor type"),
    ],
)
def test_errors_name_the_field(record, message):
    with pytest.raises(DataError, match=message):
        as_conversation(record, "a:1")


ROWS = [
    {"id": "cap", "caption": "a red circle", "image": "a.png"},
    {"id": "vqa", "question": "hue?", "answer": "red", "image": "a.png"},
    {
        "id": "llava",
        "conversations": [{"from": "human", "value": "<image>\nhue?"}, {"from": "gpt", "value": "red"}],
        "image": "a.png",
    },
    {"id": "openai", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, *turns("", "yo")[1:]]},
]


def collected(folder, *steps: Collect):
    pipeline = Pipeline([*steps, LengthFilter()], folder / "out", LocalEngine(1), show=False)
    pipeline.run()
    last = folder / "out" / f"{len(steps) + 1:02d}_LengthFilter"
    lines = [json.loads(line) for part in sorted(last.glob("part-*.jsonl")) for line in part.open()]
    return {line["data"]["id"]: (line["data"], line.get("pictures", [])) for line in lines}


def test_json_becomes_records_and_shards_become_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image(0)))
    left, dropped = run(tmp_path, ROWS, LengthFilter())
    assert not dropped
    assert left["cap"]["text"] == "<image>a red circle"
    assert left["vqa"]["messages"][0]["content"] == "<image>hue?"
    assert left["llava"]["messages"][0]["content"] == "<image>\nhue?"
    write_shards(from_jsonl(tmp_path / "in.jsonl"), tmp_path / "shards", samples_per_shard=3)
    from_shards = collected(tmp_path / "again", CollectShards(str(tmp_path / "shards")))
    assert {name: data for name, (data, _) in from_shards.items()} == left
    assert [len(pictures) for _, pictures in from_shards.values()] == [1, 1, 1, 0]


def test_data_sets_and_texts(tmp_path):
    from datasets import Dataset

    rows = [{"q": f"hue {n}?", "a": "red", "other": n} for n in range(5)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "table.parquet"))
    (tmp_path / "book.txt").write_text("one\n\ntwo\nlines\n\n")
    columns = {"question": "q", "answer": "a"}
    found = collected(
        tmp_path,
        CollectDataset(str(tmp_path / "saved"), columns=columns, drop=["other"], part_rows=2),
        CollectDataset(str(tmp_path / "table.parquet"), columns=columns, source="mine"),
        CollectText(str(tmp_path / "book.txt"), split="paragraph"),
    )
    names = [*(f"saved-{n:06d}" for n in range(5)), *(f"table-{n:06d}" for n in range(5)), "book-000000", "book-000001"]
    assert list(found) == names
    assert found["saved-000004"][0]["messages"] == turns("hue 4?", "red")
    assert (found["table-000001"][0]["source"], found["table-000001"][0]["other"]) == ("mine", 1)
    assert found["book-000001"][0]["text"] == "two\nlines"
    with pytest.raises(ConfigError, match="columns: 'qestion' is no role"):
        CollectDataset("x", columns={"qestion": "q"})


def test_json_lists_and_pieces_of_lines(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([{"text": f"item {n}"} for n in range(3)]))
    write_jsonl(tmp_path / "lines.jsonl", [{"text": f"line {n} " + "x" * n} for n in range(40)])
    from bluelm_lightning.data.curation import CollectJson

    found = collected(tmp_path, CollectJson(str(tmp_path / "li*.json*"), part_bytes=100))
    numbers = [f"lines-{n:06d}" for n in range(1, 41)] + [f"list-{n:06d}" for n in range(1, 4)]
    assert list(found) == numbers
    assert found["lines-000040"][0]["text"].startswith("line 39 ")
