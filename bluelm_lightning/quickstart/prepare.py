"""Writes the quickstart's shards and tokenizer: real inputs that come inside Python packages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path

from bluelm_lightning.data.chat import IMAGE
from bluelm_lightning.data.convert import write_shards
from bluelm_lightning.data.tokenizer import train_tokenizer
from bluelm_lightning.quickstart import easy_vqa
from bluelm_lightning.quickstart.arithmetic import arithmetic, arithmetic_text
from bluelm_lightning.quickstart.digits import digit_reading, digit_sums
from bluelm_lightning.quickstart.preferences import preferences
from bluelm_lightning.types import Sample

VOCAB_SIZE = 384
SLIP_SHARE = 0.12  # of the steps in digit traces: unchecked traces, whose habits reinforcement learning has to undo
STYLES = {"terse": 0.3, "read": 0.4, "again": 0.3}  # of digit traces: there is a habit of thinking twice to unlearn
TURNS = 4  # questions on one easy-VQA picture in a conversation: the picture is encoded once for all of them


def training_sources() -> dict[str, Iterator[Sample]]:
    """Folder name -> samples. Every sample is made from training scans, training pictures or training questions."""
    return {  # the longest to write first
        "digits_sum": digit_sums("train", 14_000, seed=4, thinking=True, slip_share=SLIP_SHARE, styles=STYLES),
        "digits_caption": digit_reading("train", 12_000, seed=2),
        "easy_vqa": chain.from_iterable(easy_vqa.conversations("train", TURNS, seed, thinking=True) for seed in (0, 1)),
        "digit_caption": digit_reading("train", 5_000, seed=1, num_digits=(1, 1), canvases=((64, 64),)),
        "arithmetic": arithmetic("train", 8_000, seed=5, thinking=True),
        "arithmetic_text": arithmetic_text(8_000, seed=3),
        "easy_vqa_caption": easy_vqa.captions("train"),
    }


def held_out_sources(digits: int = 500, arithmetic_count: int = 500) -> dict[str, list[Sample]]:
    """Held-out samples: unseen scans, the data set's own test questions, unseen sums."""
    return {
        "digits_sum": list(digit_sums("test", digits, seed=0, thinking=True)),
        "easy_vqa": list(easy_vqa.questions("test", thinking=True)),
        "arithmetic": list(arithmetic("test", arithmetic_count, seed=0, thinking=True)),
    }


def preference_sources() -> dict[str, Iterator[Sample]]:
    """Folder name -> pairs for ``tiny/reward.yaml`` and ``tiny/dpo.yaml``; the quickstart's own stages read none."""
    return {
        "preferences": preferences("train", 4_000, seed=9),
        "preferences_val": preferences("test", 200, seed=1),
    }


def prepare(root: Path) -> dict[str, int]:
    """Write ``root/data/NAME`` for every source, ``root/data/val`` and ``root/tokenizer``; returns samples by name."""
    train_tokenizer(_texts(), VOCAB_SIZE, root / "tokenizer")
    names = [*training_sources(), *preference_sources(), "val"]
    with ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(_write, names, [root] * len(names))))


def _write(name: str, root: Path) -> int:
    samples: Iterable[Sample]
    if name == "val":
        samples = chain.from_iterable(source[:100] for source in held_out_sources(100, 100).values())
    else:
        samples = {**training_sources(), **preference_sources()}[name]
    return write_shards(samples, root / "data" / name, overwrite=True)["written"]


def _texts() -> Iterable[str]:
    """A few hundred texts of each kind, without placeholders."""
    for samples in training_sources().values():
        for sample in islice(samples, 400):
            yield (sample.text or "").replace(IMAGE, "")
            for turn in sample.messages:
                yield turn["content"].replace(IMAGE, "") + " " + turn.get("thinking", "")
