"""Curation of easy-VQA with planted faults: ``python benchmarks/curation_planted.py FOLDER [--each 400]``.

The corpus is the package's training set, one record a question, and conversations of all questions on a picture. Behind
it come planted records of each kind below. The evaluation set is the package's test set. Every planted record should
go, and nothing else; the table counts both. Exit code 1 if a planted one stays or 0.5 % of the others go.
"""

import argparse
import io
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bluelm_lightning.data.curation import (
    BuildShards,
    CollectJson,
    Decontaminate,
    ExactDuplicates,
    LanguageFilter,
    LengthFilter,
    LocalEngine,
    NearDuplicates,
    PictureFilter,
    Pipeline,
    RepetitionFilter,
)
from bluelm_lightning.quickstart.easy_vqa_pictures import Question, by_picture, png

SENTENCES = (  # German, French, Spanish, Italian
    ("Welche Farbe hat die Form auf diesem Bild?", "Die Form ist {}."),
    ("De quelle couleur est la forme dans cette image ?", "La forme est {}."),
    ("¿De qué color es la figura que está en esta imagen?", "La figura es de color {}."),
    ("Di che colore è la figura che si vede nella foto?", "La figura è di colore {}."),
)
RNG = random.Random(0)
TRAIN = [question for asked in by_picture("train").values() for question in asked]
TEST = [question for asked in by_picture("test").values() for question in asked]


def opened(split: str, question: Question) -> Image.Image:
    return Image.open(io.BytesIO(png(split, question.picture))).convert("RGB")


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def jpeg(picture: Image.Image) -> bytes:
    return encoded(picture, "JPEG", quality=RNG.choice((75, 85, 95)))


def resized(picture: Image.Image, least: float = 0.75) -> Image.Image:
    side = round(64 * RNG.uniform(least, 2.0))
    return picture.resize((side, side), RNG.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)))


def rephrased(text: str) -> str:
    """Other case, punctuation and spaces."""
    end = RNG.choice(("", "?!", " ?", "...", "."))
    words = RNG.choice((str.upper, str.title, str.capitalize))(text.rstrip("?")).split(" ")
    return RNG.choice((" ", "  ", ", ")).join(words) + end


def damaged(picture: Image.Image) -> bytes:
    if RNG.random() < 0.5:
        data = encoded(picture.resize((128, 128)), "JPEG")
        return data[: RNG.randint(len(data) // 4, len(data) - 40)]
    data = bytearray(encoded(picture))
    start = data.index(b"IDAT") + 4
    data[RNG.randrange(start, len(data) - 16)] ^= 1 << RNG.randrange(8)
    return bytes(data)


def repetitive(question: Question) -> str:
    passage = "the shape in the picture has one color and the background has another one"
    forms = (f"{question.answer} " * 30, "!" * 60, f"{passage}. {passage}. Yes, {passage}.", "It is so.\n" * 12)
    return RNG.choice(forms)


Planted = tuple[str, str, bytes]  # question, answer, picture


def simple(split: str, text: Callable[[str], str], picture: Callable[[Image.Image], bytes]) -> Callable[[], Planted]:
    """A question of a split with its text and its picture changed."""

    def make() -> Planted:
        asked = RNG.choice(TRAIN if split == "train" else TEST)
        return text(asked.text), asked.answer, picture(opened(split, asked))

    return make


def foreign() -> Planted:
    asked = RNG.choice(TRAIN)
    question, answer = RNG.choice(SENTENCES)
    return question, answer.format(asked.answer), png("train", asked.picture)


def repeating() -> Planted:
    asked = RNG.choice(TRAIN)
    return asked.text, repetitive(asked), png("train", asked.picture)


def silent() -> Planted:
    asked = RNG.choice(TRAIN)
    return asked.text, " ", png("train", asked.picture)


def blank(_: Image.Image) -> bytes:
    noise = np.random.default_rng(RNG.randrange(1 << 30)).integers(0, 256, 3)
    return RNG.choice((encoded, jpeg))(Image.new("RGB", (64, 64), tuple(noise.tolist())))


def same(text: str) -> str:
    return text


KINDS: dict[str, Callable[[], Planted]] = {
    "exact copy": simple("train", same, encoded),  # replaced below: the file's own bytes
    "other case, punctuation, spaces": simple("train", rephrased, encoded),
    "picture as JPEG": simple("train", same, jpeg),
    "picture resized": simple("train", same, lambda p: encoded(resized(p))),
    "picture resized, as JPEG, text changed": simple("train", rephrased, lambda p: jpeg(resized(p, 1.0))),
    "test question, picture as JPEG": simple("test", rephrased, jpeg),
    "test question, picture resized": simple("test", rephrased, lambda p: encoded(resized(p))),
    "test picture, other question": simple("test", lambda _: "Describe what you see.", jpeg),
    "damaged picture": simple("train", same, damaged),
    "blank picture": simple("train", same, blank),
    "small picture": simple("train", same, lambda p: encoded(p.resize((RNG.randint(4, 27),) * 2))),
    "long picture": simple("train", same, lambda p: encoded(p.resize((RNG.randint(400, 800), 40)))),
    "other language": foreign,
    "repetitive answer": repeating,
    "no answer": silent,
}


def exact() -> Planted:
    asked = RNG.choice(TRAIN)
    return asked.text, asked.answer, png("train", asked.picture)


KINDS["exact copy"] = exact


class Writer:
    """JSON lines with their pictures in files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.pictures = folder, folder / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"
        self.file = self.path.open("w")

    def picture(self, name: str, data: bytes) -> str:
        path = self.pictures / name
        if not path.exists():
            path.write_bytes(data)
        return f"pictures/{name}"

    def write(self, **record) -> None:
        self.file.write(json.dumps(record) + "\n")


def dialogue(asked: list[Question]) -> list[dict]:
    turns = []
    for question in asked:
        turns += [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
    return turns


def one_word_changed(turns: list[dict]) -> list[dict]:
    """A word of the first question, so that the last answer stays."""
    words = turns[0]["content"].split(" ")
    words[RNG.randrange(len(words))] = "really"
    return [{**turns[0], "content": " ".join(words)}, *turns[1:]]


def write_corpus(folder: Path, each: int) -> dict[str, int]:
    """Returns how many records of each kind there are, ``clean`` among them."""
    clean, planted, test = (Writer(folder, name) for name in ("clean", "planted", "test"))
    for writer, split, questions in ((clean, "train", TRAIN), (test, "test", TEST)):
        for asked in questions:
            image = writer.picture(f"{split}{asked.picture}.png", png(split, asked.picture))
            writer.write(id=f"{split}-{asked.index}", question=asked.text, answer=asked.answer, image=image)
    groups = [(picture, asked) for picture, asked in by_picture("train").items() if len(asked) > 7]
    for number, (picture, asked) in enumerate(RNG.sample(groups, each)):
        image, turns = f"pictures/train{picture}.png", dialogue(asked)
        clean.write(id=f"dialogue-{number}", messages=turns, image=image)
        planted.write(id=f"one word of a dialogue/{number}", messages=one_word_changed(turns), image=image)
    for kind, make in KINDS.items():
        for number in range(each):
            question, answer, data = make()
            image = planted.picture(f"{kind}{number}.img".replace(" ", "_"), data)
            planted.write(id=f"{kind}/{number}", question=question, answer=answer, image=image)
    for writer in (clean, planted, test):
        writer.file.close()
    return {"clean": len(TRAIN) + each, "one word of a dialogue": each, **dict.fromkeys(KINDS, each)}


def curate(folder: Path) -> list[dict]:
    steps = [
        CollectJson(str(folder / "clean.jsonl"), source="clean"),
        CollectJson(str(folder / "planted.jsonl"), source="planted"),
        LengthFilter(),
        LanguageFilter(["en"]),
        RepetitionFilter(),
        PictureFilter(),
        ExactDuplicates(),
        NearDuplicates(),
        Decontaminate({"easy_vqa test": str(folder / "test.jsonl")}),
        BuildShards(),
    ]
    Pipeline(steps, folder / "out", LocalEngine(2)).run()
    return [json.loads(line) for path in (folder / "out").glob("*/dropped.jsonl") for line in path.open()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=400, help="planted records of a kind")
    args = parser.parse_args()
    shutil.rmtree(args.folder / "out", ignore_errors=True)
    shutil.rmtree(args.folder / "pictures", ignore_errors=True)
    counts = write_corpus(args.folder, args.each)
    dropped = curate(args.folder)
    found, reasons = Counter[str](), {kind: Counter[str]() for kind in counts}
    for line in dropped:
        kind = line["id"].rpartition("/")[0] or "clean"
        found[kind] += 1
        reasons[kind][line["reason"]] += 1
    print("| records | number | dropped | for |\n|---|---|---|---|")
    for kind, count in counts.items():
        print(f"| {kind} | {count} | {found[kind]} | {', '.join(f'{k} {n}' for k, n in reasons[kind].most_common())} |")
    missed = sum(counts[kind] - found[kind] for kind in counts if kind != "clean")
    share = found["clean"] / counts["clean"]
    print(f"\n{missed} planted records stay; {found['clean']} of {counts['clean']} others go, {share:.3%}")
    sys.exit(bool(missed) or share >= 0.005)


if __name__ == "__main__":
    main()
