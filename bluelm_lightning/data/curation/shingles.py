"""Texts as sets of short runs of letters, and MinHash signatures of them by rensa.

Runs of `SHINGLE` letters of the folded text serve every language, also those that put no spaces between words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from bluelm_lightning.data.curation.record import Record, fold
from bluelm_lightning.errors import ConfigError

SHINGLE = 5
SEED = 42  # of the permutations: part of the result
_PRIME = np.uint64(0x100000001B3)
SIGNS = re.compile(r"\d+|[-+*/=<>^%×÷](?=\s*\d)")


def folded(record: Record) -> str:
    """What is compared of a record."""
    return fold(record.text)


def signs(record: Record) -> list[str]:
    """Numbers, and signs of arithmetic before numbers: ``12 + 35`` -> ``["12", "+", "35"]``."""
    return SIGNS.findall(record.text)


def answer(record: Record) -> str:
    """The last assistant turn, folded; empty for documents."""
    turns = record.data.get("messages") or ()
    return fold(turns[-1]["content"]) if turns and turns[-1]["role"] == "assistant" else ""


def shingles(text: str) -> set[str]:
    """Runs of letters of a folded text; the text itself where it is no longer than one."""
    return {text[at : at + SHINGLE] for at in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared over all, 0 to 1."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint64[sum of lengths], and the bounds uint64[N + 1]: one hash a run of letters, of all texts at once."""
    padded = [text.ljust(SHINGLE, "\x00") for text in texts]
    lengths = np.array([len(text) for text in padded])
    letters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    counts = lengths - SHINGLE + 1
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    hashes = np.full(max(0, len(letters) - SHINGLE + 1), 0xCBF29CE484222325, np.uint64)
    for shift in range(SHINGLE):
        hashes ^= letters[shift : shift + len(hashes)]
        hashes *= _PRIME
        hashes ^= hashes >> np.uint64(29)
    ends = np.cumsum(lengths)
    inside = np.ones(len(letters), bool)
    for back in range(1, SHINGLE):  # the last runs of a text would reach into the next one
        inside[ends - back] = False
    return hashes[inside[: len(hashes)]], bounds


def signatures(texts: Sequence[str], num_perm: int) -> np.ndarray:
    """uint32[N, num_perm], MinHash. Raises ConfigError where rensa is not installed."""
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError("NearDuplicates needs pip install 'bluelm-lightning[curation]'") from error
    if not texts:
        return np.zeros((0, num_perm), np.uint32)
    hashes, bounds = shingle_hashes(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, bounds, num_perm=num_perm, seed=SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)
