"""Small corpora for the tests of curation, and steps run on them."""

import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from bluelm_lightning.data.curation import CollectJson, LocalEngine, Pipeline

WORDS = Path(__file__).read_text().split()  # any words will do
SENTENCE = "the red circle is to the left of the small green square and it is not as large as the other one"


def text(seed: int, words: int = 60) -> str:
    """English enough for `LanguageFilter`; two seeds share few runs of letters."""
    rng = random.Random(seed)
    some = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(words)]
    return " ".join(
        word if n % 4 else f"{word} {rng.choice(('the', 'of', 'and', 'is'))}" for n, word in enumerate(some)
    )


def image(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Smooth colours, unlike those of other seeds."""
    grid = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def write_jsonl(path: Path, records: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in records))
    return str(path)


def vqa(question: str, answer: str, picture: str, **more) -> dict:
    return {"question": question, "answer": answer, "image": picture, **more}


def run(folder: Path, records: list, *steps, processes: int = 1):
    """Collects records and runs steps. Returns what is left, ``{id: record}``, and what the last step dropped."""
    collect = CollectJson(write_jsonl(folder / "in.jsonl", records))
    pipeline = Pipeline([collect, *steps], folder / "out", LocalEngine(processes), show=False)
    report = pipeline.run()
    last = folder / "out" / report["steps"][-1]["step"]
    lines = [json.loads(line) for part in sorted(last.glob("part-*.jsonl")) for line in part.open()]
    dropped = [json.loads(line) for line in (last / "dropped.jsonl").open()]
    return {line["data"]["id"]: line["data"] for line in lines}, {line["id"]: line for line in dropped}
