"""Writes the recipe's tokenizer and shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from random import Random

from bluelm_lightning.data.convert import write_shards
from bluelm_lightning.data.tokenizer import load_tokenizer, train_tokenizer
from bluelm_lightning.quickstart.arithmetic import arithmetic
from bluelm_lightning.quickstart.digits import digit_reading, digit_sums
from bluelm_lightning.recipe.corpus import docstrings
from bluelm_lightning.recipe.needles import KINDS, WORDS, needle
from bluelm_lightning.types import Sample

VOCAB_SIZE = 1024  # and the words of the needles
SHORT, LONG = 256, 2048  # tokens: the length of pre-training, and eight times that (the report: 4K and 32K)
LENGTHS = (256, 512, 1024, 2048)  # of held-out needles


def training_sources(root: Path) -> dict[str, Iterable[Sample]]:
    """Folder name -> samples; the tokenizer of ``root`` measures their lengths."""
    return {
        "text": docstrings("train"),
        "arithmetic": arithmetic("train", 12_000, seed=5, thinking=True),  # the reasoning data
        "needle_short": _needles(root, 8_000, (64, SHORT)),
        "needle_long": _needles(root, 2_000, (SHORT, LONG)),
        "digit_caption": digit_reading("train", 5_000, seed=1, num_digits=(1, 1), canvases=((64, 64),)),
        "digits_caption": digit_reading("train", 10_000, seed=2),
        "digits_sum": digit_sums("train", 10_000, seed=4, thinking=True),
        "sft_arithmetic": arithmetic("train", 3_000, seed=7, thinking=True),
        "sft_digits": digit_sums("train", 1_500, seed=8, thinking=True, styles={"again": 1.0}),  # the long chains
    }


def held_out_sources(root: Path) -> dict[str, list[Sample]]:
    """Held-out samples: unseen modules, sums and scans, and needles in unseen text."""
    sums = list(arithmetic("test", 400, seed=0, thinking=True))
    pictures = list(digit_sums("test", 300, seed=0, thinking=True))
    return {
        "text": list(islice(docstrings("test"), 300)),
        "arithmetic": sums,
        "digits_caption": list(digit_reading("test", 300, seed=0)),
        "digits_sum": pictures,
        "needle": [held_out_needle(root, length, n / 49, n) for length in LENGTHS for n in range(50)],
    }


def held_out_needle(root: Path, tokens: int, depth: float, seed: int) -> Sample:
    """One question about one of four words; the text is held out."""
    return needle(_haystack("test"), tokens, _measure(root), seed=10_000_000 + seed, depth=depth)


def _needles(root: Path, count: int, lengths: tuple[int, int]) -> Iterator[Sample]:
    texts, measure = _haystack("train"), _measure(root)
    for seed in range(count):
        tokens = round(lengths[0] * (lengths[1] / lengths[0]) ** Random(seed).random())  # as many in every octave
        yield needle(texts, tokens, measure, seed, questions=len(KINDS))


_HELD: dict[str, list[str]] = {}


def _haystack(split: str) -> list[str]:
    if split not in _HELD:
        _HELD[split] = [sample.text or "" for sample in docstrings(split)]
    return _HELD[split]


@lru_cache(maxsize=2)
def _measure(root: Path) -> Callable[[str], int]:
    tokenizer = load_tokenizer(root.absolute() / "tokenizer")
    return lru_cache(maxsize=1 << 16)(lambda text: len(tokenizer(text).input_ids))


def prepare(root: Path) -> dict[str, int]:
    """Write ``root/data/NAME`` for every source and ``root/tokenizer``; returns samples by name."""
    write_tokenizer(root)
    names = list(training_sources(root))
    with ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(partial(write_source, root=root), names)))


def write_tokenizer(root: Path) -> None:
    """Train ``root/tokenizer`` on the recipe's text and sums; the words of the needles are tokens of it."""
    sums = (text for sample in arithmetic("train", 400, seed=5, thinking=True) for text in _texts(sample))
    train_tokenizer([*_haystack("train")[::5], *sums], VOCAB_SIZE, root / "tokenizer", WORDS)


def write_source(name: str, root: Path) -> int:
    """Write ``root/data/NAME`` anew; returns the number of samples."""
    samples = (replace(sample, source=name) for sample in training_sources(root)[name])
    return write_shards(samples, root / "data" / name, overwrite=True)["written"]


def _texts(sample: Sample) -> Iterator[str]:
    for turn in sample.messages:
        yield turn["content"] + " " + turn.get("thinking", "")
