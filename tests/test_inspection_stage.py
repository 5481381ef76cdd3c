"""What a stage makes of samples is shown as it is: whole characters, and what training leaves out or cuts."""

from random import Random

import pytest
from test_inspection import preference, shown, thinking, waiting, wide, write
from tiny import question, tiny_encoder

from bluelm_lightning.cli.data import main
from bluelm_lightning.data.loader import PackingPlan
from bluelm_lightning.data.pairs import PairEncoder
from bluelm_lightning.inspection import Reading, ShardFolder, collect, view_of
from bluelm_lightning.inspection.collect import Choice
from bluelm_lightning.inspection.statistics import SourceStatistics
from bluelm_lightning.inspection.tokens import _characters
from bluelm_lightning.types import Sample

ENCODER = tiny_encoder(max_grid=2, thumbnail=True)
PAIRS = PairEncoder(ENCODER.tokenizer, ENCODER.image_spec, 2, True)


# ---------------------------------------------------------------- tokens
def tokens_of(text: str):
    sample = Sample(id="t", source="t", text=text)
    reading = Reading(ENCODER)
    ((_, encoded),) = reading.documents(sample)
    [document] = view_of(sample, reading, [("sample", encoded)]).documents
    assert [number for token in document.tokens for number in token.ids] == encoded.ids.tolist()
    return [token for token in document.tokens if token.kind == "text"]


def test_a_character_is_whole_where_the_label_changes_inside_of_it():
    tokens = tokens_of("漢字hi")
    assert [(token.text, len(token.ids), token.labelled) for token in tokens] == [
        ("", 1, False),  # no position comes before the first token, so it is not learnt
        ("漢", 2, True),
        ("字", 3, True),
        ("h", 1, True),
        ("i", 1, True),
    ]


def test_a_replacement_character_in_the_text_shifts_nothing():
    assert [token.text for token in tokens_of("a\ufffd漢\ufffd\ufffdb") if token.text] == [
        "a", "\ufffd", "漢", "\ufffd", "\ufffd", "b",
    ]  # fmt: skip


def test_any_text_is_shown_character_by_character():
    rng, signs = Random(0), ["a", " ", "é", "漢", "😀", "👨\u200d👩\u200d👧", "\ufffd", "\n", "ß", "\u0301"]
    for _ in range(100):
        text = "".join(rng.choices(signs, k=rng.randint(1, 12)))
        tokens = tokens_of(text)
        assert "".join(token.text for token in tokens) == text
        assert all(len(token.text) <= 1 for token in tokens)


def test_characters_that_share_tokens_for_long_come_together():
    data = "漢字漢字漢字".encode()

    class Pieces:
        def decode(self, ids, **_):
            cuts = [0, *range(2, len(data) - 1, 3), len(data)]
            return b"".join(data[cuts[n] : cuts[n + 1]] for n in ids).decode(errors="replace")

    assert list(_characters(list(range(6)), Pieces())) == [(6, "漢字漢字漢字")]


# ---------------------------------------------------------------- what a stage leaves out
def problems(encoder, samples, tmp_path, **plan):
    reading = Reading(encoder, plan=PackingPlan(**{"row_tokens": 40, "rows": 1, **plan}))
    found = collect(ShardFolder(write(tmp_path / "s", samples, overwrite=True)), reading, Choice(count=9))
    return {view.id: view.problem for view in found.views}, found


def test_a_stage_says_what_it_leaves_out(tmp_path):
    long = question("w " * 100, id="long")
    samples = [question(id="fine"), waiting(), preference(), long]
    told, found = problems(ENCODER, samples, tmp_path)
    assert told["fine"] == ""
    assert "ends with an assistant turn" in told["r"]
    assert "ends with an assistant turn" in told["p"]
    assert told["long"] == f"{len(ENCODER(long))} tokens, a row holds 40"
    out = shown(found)
    assert "0 samples cannot be read, 3 training would leave out" in out
    assert "  training would leave it out: 2" in out
    assert "tokens, a row holds 40" in out
    told, _ = problems(PAIRS, [*samples[1:3], wide()], tmp_path, row_tokens=100)
    assert (told["p"], bool(told["r"]), bool(told["w"])) == ("", True, True)


def test_what_is_cut_and_what_stops_training_is_said(tmp_path):
    text = Sample(id="text", source="web", text="w " * 100)
    told, found = problems(ENCODER, [text], tmp_path, overlong="split")
    assert told == {"text": ""}
    assert f"  longer than a row: {len(ENCODER(text))} tokens, a row holds 40; the text is cut\n" in shown(found)
    assert found.num_unusable == 0
    told, _ = problems(ENCODER, [text], tmp_path, overlong="error")
    assert told["text"].endswith("a row holds 40; training would stop")
    told, _ = problems(ENCODER, [question(images=2, id="tiles")], tmp_path, max_tiles=1)
    assert told == {"tiles": "2 tiles, a batch holds 1"}


def test_both_answers_of_a_preference_are_counted():
    one = SourceStatistics()
    one.add(preference(), [], [])
    assert (one.total("turns"), one.total("characters")) == (3, len("<image>safe?" + "no" + "yes" + "why not"))
    one = SourceStatistics()
    one.add(thinking(), [], [])
    assert (one.total("turns"), one.total("characters")) == (2, len("<image>sum?" + "9" + "4+5=9"))


@pytest.mark.parametrize("name", ["[/b].html", "[bold]x.html"])
def test_a_page_may_have_any_name(tmp_path, name, capsys):
    folder = write(tmp_path / "s", [question()])
    assert main(["show", str(folder), "--html", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / name}: 1 samples\n"
    assert (tmp_path / name).is_file()
