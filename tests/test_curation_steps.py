"""Each step of curation on a few records: what stays, what goes, and why."""

import json

import pytest
from curation_data import encoded, image, run, text, vqa, write_jsonl

from bluelm_lightning.data.curation import (
    Classify,
    CollectJson,
    Decontaminate,
    ExactDuplicates,
    Filter,
    LanguageFilter,
    LengthFilter,
    LocalEngine,
    Mix,
    NearDuplicates,
    PictureFilter,
    Pipeline,
    RepetitionFilter,
    Select,
)
from bluelm_lightning.data.curation.language import find_language
from bluelm_lightning.errors import ConfigError, DataError


class Careless(Filter):
    """Fails at the records named so."""

    def process(self, record):
        if record.id == "raises":
            record.data = None
            return record.nothing
        return record if record.id != "forgets" else None


def texts(**named):
    return [{"id": name, "text": value} for name, value in named.items()]


def reasons(dropped):
    return {name: line["reason"] for name, line in dropped.items()}


def test_length(tmp_path):
    turns = [{"role": "user", "content": "how many are there?"}, {"role": "assistant", "content": " "}]
    records = [*texts(good="a text", short="a", long="a" * 30), {"id": "mute", "messages": turns}]
    left, dropped = run(tmp_path, records, LengthFilter(min_characters=2, max_characters=20))
    assert list(left) == ["good"]
    assert reasons(dropped) == {"short": "too short", "long": "too long", "mute": "no answer"}
    assert dropped["short"]["detail"] == "1 characters, at least 2"


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "What color is the circle in this picture?"),
        ("de", "Welche Farbe hat der Kreis auf dem Bild, und ist er groß?"),
        ("fr", "De quelle couleur est le cercle dans cette image ?"),
        ("es", "¿De qué color es el círculo en esta imagen?"),
        ("it", "Di che colore è il cerchio nella figura?"),
        ("pt", "Qual é a cor do círculo que está na imagem? Não é uma pergunta difícil."),
        ("nl", "Welke kleur heeft de cirkel op het plaatje?"),
        ("zh", "这张图片里的圆是什么颜色？"),
        ("ja", "この画像の円は何色ですか？"),
        ("ko", "이 그림에서 원은 무슨 색입니까?"),
        ("ru", "Какого цвета круг на этой картинке?"),
        (None, "x = 3 * y + 4"),
    ],
)
def test_language_is_found(language, sentence):
    assert find_language(sentence) == language


def test_language_filter(tmp_path):
    records = texts(en="what is the color of it?", de="welche Farbe hat der Kreis?", none="x=3")
    left, dropped = run(tmp_path, records, LanguageFilter(["en", "zh"], note="language"))
    assert {name: record["language"] for name, record in left.items()} == {"en": "en", "none": "unknown"}
    assert (dropped["de"]["reason"], dropped["de"]["detail"]) == ("other language", "de")


def test_repetition(tmp_path):
    passage = text(1, 12)
    records = texts(
        good=text(0, 80),
        sign="see " + "!" * 40,
        pair="buy now " * 15,
        lines="\n".join([*["subscribe to our letter"] * 6, *(text(n, 4) for n in range(3))]),
        runs=f"{passage} {text(2, 6)} {passage} {text(3, 6)} {passage}",
        table="0000000000000 1 2 3",
    )
    left, dropped = run(tmp_path, records, RepetitionFilter())
    assert sorted(left) == ["good", "table"]
    wanted = {"sign": "one sign repeated", "pair": "repeated words", "lines": "repeated lines"}
    assert reasons(dropped) == {**wanted, "runs": "repeated passages"}


def test_pictures(tmp_path):
    whole = encoded(image(0))
    broken = bytearray(whole)
    broken[broken.index(b"IEND") - 6] ^= 1  # in the checksum of the pixels
    files = {
        "good": whole,
        "bits": bytes(broken),  # decodes well: only the checksum tells
        "cut": encoded(image(1), "JPEG")[:-300],
        "small": encoded(image(2, (60, 20))),
        "long": encoded(image(3, (600, 50))),
        "blank": encoded(image(4).point(lambda _: 7)),
        "large": encoded(image(5, (400, 300))),
    }
    for name, data in files.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    records = [{"id": name, "caption": "a", "image": f"{name}.png"} for name in files]
    step = PictureFilter(max_pixels=100_000)
    left, dropped = run(tmp_path, [*records, *texts(text="no picture")], step)
    assert sorted(left) == ["good", "text"]
    wanted = {
        "small": "picture too small",
        "long": "picture too long",
        "blank": "empty picture",
        "large": "picture too large",
    }
    assert reasons(dropped) == {**wanted, "bits": "damaged picture", "cut": "damaged picture"}
    assert dropped["long"]["detail"] == "picture 0: 600 x 50, at most 8 to 1"


def test_exact_duplicates_keep_the_first(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image(0)))
    (tmp_path / "b.png").write_bytes(encoded(image(1)))
    records = [
        *texts(one="same", other="same ", two="same"),
        vqa("hue?", "red", "a.png", id="a"),
        vqa("hue?", "red", "b.png", id="b"),
    ]
    left, dropped = run(tmp_path, [*records, vqa("hue?", "red", "a.png", id="c", source="else")], ExactDuplicates())
    assert list(left) == ["one", "other", "a", "b"]
    assert dropped["two"]["match"] == {"id": "one", "source": "in"}
    assert dropped["c"]["match"] == {"id": "a", "source": "in"}


def test_near_duplicates_of_texts(tmp_path):
    long = text(0, 80)
    records = texts(
        first=long,
        word=long.replace(long.split()[40], "changed"),
        folded=long.upper().replace(" ", " - "),
        other=text(1, 80),
        sum="what is 12 + 35? think about it and say the number",
        difference="what is 12 - 35? think about it and say the number",
        again="What is 12 + 35? Think about it, and say the number!",
    )
    left, dropped = run(tmp_path, records, NearDuplicates())
    assert list(left) == ["first", "other", "sum", "difference"]
    assert {name: line["match"]["id"] for name, line in dropped.items()} == {
        "word": "first", "folded": "first", "again": "sum"
    }  # fmt: skip
    assert dropped["folded"]["match"]["score"] == 1.0
    assert 0.8 < dropped["word"]["match"]["score"] < 1.0


def test_near_duplicates_need_picture_and_question(tmp_path):
    picture = image(0)
    files = {"a": encoded(picture), "jpg": encoded(picture, "JPEG", quality=75), "b": encoded(image(1))}
    files["large"] = encoded(picture.resize((96, 72)))
    for name, data in files.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    records = [
        vqa("What color is the circle?", "red", "a.png", id="first"),
        vqa("what color is the CIRCLE", "red", "jpg.png", id="jpeg"),
        vqa("What color is the circle?", "red", "large.png", id="resized"),
        vqa("What color is the circle?", "red", "b.png", id="other picture"),
        vqa("Is there a small triangle?", "no", "jpg.png", id="other question"),
        vqa("Is the small circle to the left of the large square in the picture red?", "yes", "a.png", id="yes"),
        vqa("Is the small circle to the left of the large square in the picture red?", "no", "jpg.png", id="no"),
    ]
    left, dropped = run(tmp_path, records, NearDuplicates())
    assert list(left) == ["first", "other picture", "other question", "yes", "no"]
    assert {name: line["match"]["id"] for name, line in dropped.items()} == {"jpeg": "first", "resized": "first"}


def test_decontamination_names_the_item(tmp_path):
    picture, asked = (
        image(0),
        "a train leaves the station at noon and runs for three hours at 80 km/h. How far does it get?",
    )
    (tmp_path / "test.png").write_bytes(encoded(picture))
    (tmp_path / "leak.jpg").write_bytes(encoded(picture.resize((80, 60)), "JPEG", quality=80))
    (tmp_path / "own.png").write_bytes(encoded(image(1)))
    items = [
        {"id": "t0", "question": asked, "answer": "240 km"},
        {"id": "t1", "question": "What is 7 - 2?", "answer": "5"},
        vqa("What color is the circle?", "red", "test.png", id="t2"),
    ]
    test = write_jsonl(tmp_path / "test.jsonl", items)
    records = [
        {"id": "word for word", "text": f"{text(0)} {asked.upper().replace(',', ';')} {text(1)}"},
        {"id": "short", "question": "what is  7 - 2", "answer": "5"},
        vqa("Anything?", "no", "leak.jpg", id="picture"),
        vqa("What color is the circle?", "red", "own.png", id="own"),
        {"id": "other sum", "question": "What is 7 + 2?", "answer": "9"},
        {"id": "other train", "text": f"{text(2)} a train leaves the station at midnight {text(3)}"},
    ]
    left, dropped = run(tmp_path, records, Decontaminate({"exam": test}))
    assert list(left) == ["own", "other sum", "other train"]
    found = {name: (line["reason"], line["match"]["source"], line["match"]["id"]) for name, line in dropped.items()}
    assert found == {
        "word for word": ("evaluation text", "exam", "t0"),
        "short": ("evaluation text", "exam", "t1"),
        "picture": ("evaluation picture", "exam", "t2"),
    }


def test_a_damaged_evaluation_set_is_refused(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(encoded(image(0), "JPEG")[:-300])
    test = write_jsonl(tmp_path / "test.jsonl", [vqa("Which hue?", "red", "cut.jpg")])
    with pytest.raises(DataError, match=r"test.jsonl:1: a picture of the evaluation set exam is damaged"):
        run(tmp_path, texts(a="a"), Decontaminate({"exam": test}))


def test_decontamination_with_text_needs_both(tmp_path):
    (tmp_path / "test.png").write_bytes(encoded(image(0)))
    (tmp_path / "own.png").write_bytes(encoded(image(1)))
    test = write_jsonl(tmp_path / "test.jsonl", [vqa("Which hue?", "red", "test.png", id="t")])
    pairs = [
        ("leak", "which hue", "test.png"),
        ("asked else", "How many?", "test.png"),
        ("own", "Which hue?", "own.png"),
    ]
    records = [vqa(question, "red", picture, id=name) for name, question, picture in pairs]
    left, _ = run(tmp_path, records, Decontaminate([test], with_text=True))
    assert list(left) == ["asked else", "own"]


def test_tags_and_selection(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image(0)))
    records = [
        vqa("What is the color of it?", "red", "a.png", id="vqa", task="hue"),
        *texts(code="def f():\n    return 1", maths=r"so $x^2 = 4$ and \frac{1}{2} is the answer of it"),
        *texts(**{f"plain{n}": text(n, 100) for n in range(6)}),
    ]
    step = Select(any_of=["image", "maths", "length:medium"], none_of=["code"], caps={"length:medium": 2}, seed=1)
    left, dropped = run(tmp_path, records, Classify(), step)
    wanted = {"image", "language:en", "length:short", "task:hue", "source:in"}
    assert set(left["vqa"]["tags"]) == wanted
    assert "maths" in left["maths"]["tags"]
    assert len(left) == 4
    assert dropped["code"]["reason"] == "tag not wanted"
    assert sum(line["reason"] == "cap of length:medium" for line in dropped.values()) == 4


def test_mix_takes_and_repeats_by_weight(tmp_path):
    records = [
        {"id": f"{source}{n}", "text": source, "source": source}
        for source, count in (("a", 30), ("b", 4))
        for n in range(count)
    ]
    left, dropped = run(tmp_path, records, Mix({"a": 3, "b": 1}))
    assert (len(left), sum(name[0] == "a" for name in left)) == (16, 12)
    assert {line["reason"] for line in dropped.values()} == {"beyond its source's share"}
    left, _ = run(tmp_path / "repeated", records, Mix({"a": 1, "b": 1}, total=20, max_repeats=3))
    repeated = [name for name in left if name[0] == "b"]
    assert len(left) == 20
    assert {name.partition("#")[0] for name in repeated} == {"b0", "b1", "b2", "b3"}
    assert sum("#3" in name for name in repeated) == 2
    with pytest.raises(ConfigError, match="source 'b' has no weight; the sources are a, b"):
        run(tmp_path / "wrong", records, Mix({"a": 1}))


def test_collection_names_what_it_drops(tmp_path):
    path = write_jsonl(tmp_path / "bad.jsonl", ["{\n", {"text": "good"}, {"id": 7}, "\n", vqa("a?", "b", "none.png")])
    pipeline = Pipeline([CollectJson(path, part_bytes=8)], tmp_path / "out", LocalEngine(1), show=False)
    [step] = pipeline.run()["steps"]
    assert (step["in"], step["out"], sum(step["dropped"].values())) == (4, 1, 3)
    lines = [json.loads(line) for line in (tmp_path / "out/01_CollectJson/dropped.jsonl").open()]
    places = [f"{tmp_path.name}/bad.jsonl:{where}" for where in ("1", "3", "5: image[0]")]
    assert [line["id"] for line in lines] == places


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "AttributeError: 'Record' object has no attribute 'nothing'; correct Careless.process"),
        ("forgets", "returned None; return the record or Dropped(...)"),
    ],
    ids=["raises", "forgets"],
)
def test_a_step_that_fails_is_named_with_its_record(tmp_path, name, said, processes):
    path = write_jsonl(tmp_path / "in.jsonl", texts(**{"good": "a" * 90, name: "b" * 90}))
    steps = [CollectJson(path, part_bytes=100), Careless()]
    with pytest.raises(DataError) as caught:
        Pipeline(steps, tmp_path / "out", LocalEngine(processes), show=False).run()
    assert str(caught.value) == f"02_Careless: record {name}: {said}"
    assert caught.value.where == f"02_Careless: record {name}"
    assert processes == 2 or isinstance(caught.value.__cause__, AttributeError) == (name == "raises")
