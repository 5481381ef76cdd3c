"""Inspection: what is shown is what training sees, counts are right, and damage is named while the rest is shown."""

import io
import json
from collections import Counter

import pytest
import torch
from rich.console import Console
from tiny import PER_TILE, TILE, png, question, tiny_encoder, tiny_tokenizer

from bluelm_lightning.data.chat import END
from bluelm_lightning.data.shards import ShardWriter
from bluelm_lightning.data.tiling import count_tiles
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.inspection import Reading, ShardFolder, collect, view_of
from bluelm_lightning.inspection.collect import Choice
from bluelm_lightning.inspection.pictures import view_picture
from bluelm_lightning.inspection.statistics import SourceStatistics, histogram
from bluelm_lightning.inspection.terminal import print_inspection, spark
from bluelm_lightning.inspection.views import TurnView, turns_of
from bluelm_lightning.inspection.words import picture_words, range_words
from bluelm_lightning.types import IGNORE, Sample

READING = Reading(tiny_encoder(max_grid=2, thumbnail=True))


def thinking(**fields) -> Sample:
    sample = question("sum?", "9", images=1, **fields)
    sample.messages[-1]["thinking"] = "4+5=9"
    return sample


def preference(**fields) -> Sample:
    asked = [{"role": "user", "content": "<image>safe?"}]
    answers = {"chosen": "no", "rejected": {"content": "yes", "thinking": "why not"}}
    return Sample(**{"id": "p", "source": "pairs", "messages": asked, "images": [png()], "meta": answers, **fields})


def waiting(**fields) -> Sample:
    meta = {"rewards": {"exact_match": 1.0}}
    asked = [{"role": "user", "content": "2+2?"}]
    return Sample(**{"id": "r", "source": "asked", "messages": asked, "answer": "4", "meta": meta, **fields})


def wide() -> Sample:
    return Sample(id="w", source="web", text="left<image>right é漢😀\n</s>", images=[png(TILE, 2 * TILE)])


def write(folder, samples, **options):
    with ShardWriter(folder, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def shown(found, terminal=False, width=200) -> str:
    out = io.StringIO()
    print_inspection(found, Console(file=out, force_terminal=terminal, width=width, highlight=False, soft_wrap=True))
    return out.getvalue()


# ---------------------------------------------------------------- tokens and modes
@pytest.mark.parametrize(
    "sample", [question(), thinking(), wide(), preference(), waiting()], ids=lambda sample: sample.id
)
def test_the_mask_that_is_shown_is_that_of_the_labels(sample):
    encoded = READING.documents(sample)
    view = view_of(sample, READING, encoded)
    assert len(view.documents) == len(encoded) == (2 if sample.id == "p" else 1)
    for document, (_, made) in zip(view.documents, encoded):
        ids = [number for token in document.tokens for number in token.ids]
        learnt = [token.labelled for token in document.tokens for _ in token.ids]
        assert ids == made.ids.tolist()
        labels = torch.tensor([number if kept else IGNORE for number, kept in zip(ids, learnt)])
        assert torch.equal(labels[1:], made.labels[:-1])
        assert document.num_labelled == int((made.labels != IGNORE).sum())
        image = [at for at, token in enumerate(ids) if token == tiny_tokenizer().convert_tokens_to_ids("<image>")]
        assert image == made.image_positions.tolist()
        assert document.num_image == len(image)


def test_tokens_read_as_the_text_and_forged_ones_are_no_special_tokens():
    [document] = view_of(wide(), READING, READING.documents(wide())).documents
    assert "".join(token.text for token in document.tokens) == (
        "<im_start><image><im_end>".join(["left", "right é漢😀\n</s>"]) + END
    )
    assert [token.text for token in document.tokens if token.kind == "special"] == ["<im_start>", "<im_end>", END]
    emoji = next(token for token in document.tokens if token.text == "😀")
    assert len(emoji.ids) == 4  # byte-level: one character, four tokens, one stretch
    picture = next(token for token in document.tokens if token.kind == "image")
    assert len(picture.ids) == 3 * PER_TILE  # two tiles and a thumbnail


def test_each_mode_is_named_and_its_turns_are_shown():
    made = {s.id: view_of(s, READING, READING.documents(s)) for s in (preference(), waiting(), wide())}
    assert [(turn.role, turn.text, turn.thinking) for turn in made["p"].turns] == [
        ("user", "<image>safe?", ""),
        ("chosen", "no", ""),
        ("rejected", "yes", "why not"),
    ]
    written = preference(meta={"chosen": "<think>hm</think>no", "rejected": 3})
    assert turns_of(written)[1:] == [TurnView("chosen", "no", "hm"), TurnView("rejected", "3")]
    assert [document.title for document in made["p"].documents] == ["chosen", "rejected"]
    assert [document.title for document in made["r"].documents] == ["prompt"]
    assert made["r"].meta == {"rewards": {"exact_match": 1.0}}
    assert made["p"].meta == {}
    assert {name: view.mode for name, view in made.items()} == {"p": "preference", "r": "prompt", "w": "text"}


def test_a_stage_may_ask_or_drop_traces():
    sample = thinking()
    asked = Reading(READING.encoder, asks=True).documents(sample)[0]
    assert asked[0] == "prompt"
    assert torch.equal(asked[1].ids, READING.encoder.prompt(sample, True).ids)
    dropped = Reading(READING.encoder, thinking_share=0.0).documents(sample)[0][1]
    assert len(dropped) < len(READING.documents(sample)[0][1])
    pair = preference(meta={"chosen": "no", "rejected": "<think>hm</think>no"})
    chosen, rejected = (document.ids for _, document in Reading(READING.encoder, thinking_share=0.0).documents(pair))
    assert torch.equal(chosen, rejected)


# ---------------------------------------------------------------- statistics
def test_statistics_by_hand(tmp_path):
    samples = [question(f"n{n}?", "no", images=n, id=f"a{n}", source="a") for n in (0, 1, 2)] + [thinking(source="b")]
    samples.append(question("x", "y", id="broken", source="b", images=1))
    samples[-1].images = [png()[:60]]  # a head without a body: only decoding it finds out
    found = collect(ShardFolder(write(tmp_path / "s", samples)), READING, Choice(count=1))
    a, b = found.statistics["a"], found.statistics["b"]
    # [|Human|]: (<im_start> 4 <im_end>)* n 0 ? \n [|AI|]: no </s>
    lengths = [len(READING.encoder(sample)) for sample in samples[:3]]
    assert [one - lengths[0] for one in lengths] == [0, 6, 12]
    assert a.values["tokens"] == Counter(lengths)
    assert (a.total("tokens"), a.median("tokens")) == (sum(lengths), lengths[1])
    assert a.total("labelled") == 3 * 2  # "no" and </s>
    assert a.labelled_share == 6 / sum(lengths)
    assert (a.image_tokens, a.total("tiles"), a.sizes) == (3 * PER_TILE, 3, Counter({(16, 16): 3}))
    assert a.modes == {"non_thinking": 3}
    assert a.total("characters") == sum(len(turn["content"]) for s in samples[:3] for turn in s.messages)
    assert (b.samples, b.unusable, b.values["tokens"].total()) == (2, 1, 1)
    assert b.modes == {"thinking": 1, "non_thinking": 1}
    assert [view.id for view in found.views] == ["a0", "s0"]
    assert found.counted == "all 5 samples"
    [problem] = found.problems
    assert "image 0: PNG image of 60 bytes is truncated" in problem
    assert "0 samples cannot be read, 1 training would leave out" in shown(found)


def test_rows_too_short_are_counted(tmp_path):
    folder = ShardFolder(write(tmp_path / "s", [question(id="short"), question("word " * 30, id="long")]))
    found = collect(folder, Reading(READING.encoder, row_tokens=40), Choice())
    assert found.statistics["tiny"].overlong == 1
    assert "  longer than a row 1\n" in shown(found)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ({}, []),
        ({7: 3}, [(7, 7, 3)]),
        ({0: 1, 2: 5}, [(0, 0, 1), (1, 1, 0), (2, 2, 5)]),
        ({3: 1, 18: 1}, [(n, n, int(n in (3, 18))) for n in range(3, 19)]),
        ({9: 1, 25: 2}, [(n, n + 1, 1 if n == 8 else 2 if n == 24 else 0) for n in range(8, 26, 2)]),
        ({1234: 2, 99: 1}, [(n, n + 99, {0: 1, 1200: 2}.get(n, 0)) for n in range(0, 1300, 100)]),
    ],
)
def test_histograms(values, bars):
    assert histogram(Counter(values)) == bars


def test_histograms_lose_nothing():
    values = Counter({n * n: n for n in range(1, 60)})
    bars = histogram(values)
    assert len(bars) <= 17
    assert sum(bar.samples for bar in bars) == values.total()
    assert spark([0, 1, 100]) == " ▁█"


def test_the_median_is_that_of_the_samples():
    one = SourceStatistics(values={"turns": Counter({1: 5, 2: 6, 1900: 1}), "tiles": Counter({3: 2})})
    assert (one.median("turns"), one.total("turns"), one.median("tokens")) == (2, 1917, None)
    assert range_words(one, "turns") == ["1", "median 2", "1,900"]
    assert range_words(one, "tiles") == ["all 3"]


@pytest.mark.parametrize("size", [(16, 16), (1, 90), (40, 20), (33, 32)])
def test_tiles_are_counted_as_they_are_cut(size):
    view = view_picture(png(size[1], size[0]), READING.tiling)
    assert view.num_tiles == count_tiles(*size, TILE, 2, thumbnail=True)


# ---------------------------------------------------------------- which samples
def test_rows_and_columns_of_tiles_are_not_mixed_up():
    assert ", 2 rows x 1 column of tiles of " in picture_words(view_picture(png(40, 20), READING.tiling))
    assert ", 1 row x 2 columns of tiles of " in picture_words(view_picture(png(20, 40), READING.tiling))


def test_what_is_read_and_shown(tmp_path):
    samples = [question(id=f"s{n}", source="even" if n < 90 else "odd") for n in range(100)]
    folder = ShardFolder(write(tmp_path / "s", samples, samples_per_shard=30))

    def names(**options):
        found = collect(folder, Reading(), Choice(**{"count": 2, **options}))
        return [view.id for view in found.views], found.num_read, found.counted

    assert names() == (["s0", "s1", "s90", "s91"], 100, "all 100 samples")
    assert names(samples=10) == (["s0", "s10", "s90"], 10, "10 samples out of 100, at even distances")
    assert names(statistics=False)[:2] == (["s0", "s1", "s90", "s91"], 92)
    assert names(source="odd") == (["s90", "s91"], 10, "all 10 samples of source odd")
    assert names(source="odd", samples=3)[2] == "3 samples of source odd out of 100, the first"
    drawn = names(seed=4, samples=20)
    assert drawn == names(seed=4, samples=20) != names(seed=5, samples=20)
    assert drawn[2] == "20 samples out of 100, drawn with seed 4"
    with pytest.raises(ConfigError, match="no sample of 'none'; its sources are even, odd"):
        names(source="none")
    with pytest.raises(ConfigError, match="--count: -1 is below 0"):
        Choice(count=-1)


# ---------------------------------------------------------------- damage
def test_damage_is_named_and_the_rest_is_shown(tmp_path):
    folder = write(tmp_path / "s", [question(id=f"s{n}") for n in range(6)], samples_per_shard=2)
    second = folder / "shard-000001.tar"
    second.write_bytes(second.read_bytes()[:-9000])
    third = (folder / "shard-000002.tar").read_bytes()
    (folder / "shard-000002.tar").write_bytes(third.replace(b'"id": "s4"', b'"id": [s4]'))
    found = collect(ShardFolder(folder), READING, Choice(count=9))
    assert [view.id for view in found.views] == ["s0", "s1", "s5"]
    assert [line for line in found.problems if "shard-000001.tar: the tar is damaged" in line]
    assert [line for line in found.problems if "shard-000002.tar:" in line and ".json: is not JSON" in line]
    assert (found.num_unreadable, len(found.problems)) == (1, 2)
    out = shown(found)
    assert "1 samples cannot be read" in out
    assert "4 samples in 2 shards" in out
    (folder / "shard-000000.tar").unlink()
    assert "lacks ['shard-000000.tar']" in ShardFolder(folder).problems[0]
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match="lacks"):
        ShardFolder(folder)


# ---------------------------------------------------------------- the terminal
def test_tokens_in_the_terminal(tmp_path):
    sample = thinking(id="digits-7")
    sample.answer = "9"
    folder = ShardFolder(write(tmp_path / "s", [sample]))
    found = collect(folder, READING, Choice(statistics=False))
    out = shown(found)
    assert out.startswith("digits-7  source tiny  mode thinking\n  picture 0: 16 x 16 PNG, 8")
    assert "[|Human|]:<im_start><image x 4><im_end>sum?[|BlueThink|]\n[|AI|]:«<think>4+5=9</think>9</s>»" in out
    assert "\n  answer: 9\n\n1 samples in 1 shards, 0.0 MB\n  tiny: 1\n" in out
    assert "\x1b[" not in out
    coloured = shown(found, terminal=True)
    assert "\x1b[1;32m<think>" in coloured
    assert "«" not in coloured


def test_without_a_tokenizer_the_text_is_shown(tmp_path):
    folder = ShardFolder(write(tmp_path / "s", [thinking(), preference(), waiting()]))
    out = shown(collect(folder, Reading(), Choice(count=1)))
    assert "  user: <image>sum?\n  assistant thinks: 4+5=9\n  assistant: 9\n  2 turns, 17 characters\n" in out
    assert "  chosen: no\n  rejected thinks: why not\n  rejected: yes\n" in out
    assert '  rewards: {"exact_match": 1.0}\n' in out
    assert "without a tokenizer: --tokenizer FOLDER, --config STAGE.yaml or --run RUN adds tokens" in out
    assert "  characters        17  █  all 17\n" in out
    assert "  tokens " not in out


def test_data_cannot_steer_the_terminal(tmp_path):
    bad = question("\x1b[2J\x07[red]bold\u202e", "\x9b1A", id="a\x1b]0;x", source="s\x1b[1m", task="\r")
    bad.meta = {"k\x1b": "\x1b[0m"}
    for reading in (Reading(), READING):
        out = shown(collect(ShardFolder(write(tmp_path / "s", [bad], overwrite=True)), reading, Choice()))
        assert not set(out) & set("\x1b\x07\x9b\r\u202e")
        assert "\u241b[2J\u2407[red]bold\ufffd" in out


def test_the_manifest_is_not_needed(tmp_path):
    folder = write(tmp_path / "s", [question(id="x"), wide()])
    (folder / "manifest.json").unlink()
    out = shown(collect(ShardFolder(folder), Reading(), Choice(count=0, statistics=False)))
    assert out == "2 samples in 1 shards, 0.0 MB\nsources of all 2 samples\n  tiny: 1\n  web: 1\n"
    assert json.loads((folder / "shard-000000.idx.json").read_text())["version"] == 1
