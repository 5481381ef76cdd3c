"""NearDuplicates: texts that share most of their letters, and pictures re-encoded or resized with the same text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from bluelm_lightning.data.curation.near_pictures import PictureGrid
from bluelm_lightning.data.curation.pictures import FINE, SIDE, PictureCode, picture_code
from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.shingles import answer, folded, jaccard, shingles, signatures, signs
from bluelm_lightning.data.curation.step import Decision, Global
from bluelm_lightning.errors import ConfigError, DataError

ROWS = 4  # hashes of a band: texts that share a share s of their runs of letters share a band with chance s ** 4
WINDOW = 32  # neighbours in a band that a record is compared with, besides the first
_SEED, _ODD = 0x9E3779B97F4A7C15, 0x9E3779B1
SLACK = 0.15  # signatures only estimate: their error of 64 hashes is below 0.15 in 98 of 100 pairs


class NearDuplicates(Global):
    """Keeps the first of records that are nearly the same.

    Records are candidates when their pictures are alike, one by one, and the MinHash signatures of their texts share a
    band. Then the shares of runs of letters are compared exactly. Case, punctuation and spaces do not count.

    Short texts differ by a word and mean another thing, so below `strict_below` characters numbers, signs of arithmetic
    and the last answer must be the same, too. The share compared is that of the text in both cases: a picture alone
    makes no duplicate, for several questions on one picture are what one wants.

    Args:
        threshold: share of runs of 5 letters that two texts have in common, of all that they have.
        max_rms: difference of two pictures' codes in levels of 255 up to which they are alike; see `picture_code`.
        strict_below: characters of the folded text.
        num_perm: hashes of a signature, a multiple of 4.

    Source: MinHash after Broder (1997), bands after Leskovec et al.; the strict rule is our choice.
    """

    version = 3

    def __init__(
        self, threshold: float = 0.8, max_rms: float = 5.0, strict_below: int = 200, num_perm: int = 64
    ) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"{threshold} is no share; give more than 0 and at most 1", "threshold")
        if num_perm < ROWS or num_perm % ROWS:
            raise ConfigError(f"{num_perm} is no multiple of {ROWS}", "num_perm")
        if max_rms < 0 or strict_below < 0:
            key = "max_rms" if max_rms < 0 else "strict_below"
            raise ConfigError(f"{min(max_rms, strict_below)} is below 0", key)
        self.threshold, self.max_rms = threshold, max_rms
        self.strict_below, self.num_perm = strict_below, num_perm

    def sketch(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        whole = signatures([folded(record) for record in records], self.num_perm)
        seen = [(row, data) for row, record in enumerate(records) for data in record.images()]
        hashes = [int.from_bytes(blake2b(data, digest_size=8).digest()) for _, data in seen]
        unique = dict(zip(hashes, (data for _, data in seen)))
        codes = [_code(data) for data in unique.values()]
        return {
            "bands": _band_keys(whole),
            "signature": whole.astype(np.uint8),  # the lowest 8 bits agree by chance once in 256
            "picture_row": np.array([row for row, _ in seen], np.int64),
            "picture_hash": np.array(hashes, np.uint64),
            "code_hash": np.array(list(unique), np.uint64),
            "coarse": np.array([code.coarse for code in codes], np.uint8).reshape(len(codes), SIDE * SIDE * 3),
            "fine": np.array([code.fine for code in codes], np.uint8).reshape(len(codes), FINE * FINE),
        }

    def decide(self, sketches: Any, rows: Any) -> Decision:
        decision, compare = Decision.keep_all(len(rows)), _Comparison(self, rows)
        for first, second in self._candidates(sketches, len(rows)).tolist():
            if not decision.reason[first] and not decision.reason[second]:
                score = compare(first, second)
                if score:
                    decision.drop(second, "near duplicate", first, score)
        return decision

    def _candidates(self, sketches: Any, count: int) -> np.ndarray:
        """int64[M, 2]: rows i < j of like pictures that share a band and whose signatures agree nearly enough."""
        bands, signature = sketches.parts("bands"), sketches.column("signature")
        groups = _groups(sketches, count, self.max_rms)
        found: np.ndarray = np.zeros(0, np.int64)
        for band in range(bands[0].shape[1] if bands else 0):
            keys = np.concatenate([part[:, band] for part in bands]) ^ (groups.astype(np.uint32) * np.uint32(_ODD))
            for left, right in _neighbours(keys):
                agree = np.empty(len(left), np.float32)
                for at in range(0, len(left), 1 << 20):
                    here = slice(at, at + (1 << 20))
                    agree[here] = (signature[left[here]] == signature[right[here]]).mean(1)
                near = (agree >= self.threshold - SLACK) & (groups[left] == groups[right])
                found = np.union1d(found, right[near] * np.int64(count) + left[near])
        return np.stack([found % max(1, count), found // max(1, count)], 1)  # by the second, then by the first


class _Comparison:
    """The exact rule for two rows; what was read last is kept."""

    def __init__(self, step: NearDuplicates, rows: Any) -> None:
        self.step = step

        def read(row: int) -> tuple[str, set[str], list[str], str]:
            record = rows[row]
            text = folded(record)
            return text, shingles(text), signs(record), answer(record)

        self.read = lru_cache(maxsize=4096)(read)

    def __call__(self, first: int, second: int) -> float:
        """The share in common where it is enough, else 0."""
        (text, some, numbers, last), (other, more, others, end) = self.read(first), self.read(second)
        strict = min(len(text), len(other)) < self.step.strict_below
        if strict and (numbers != others or last != end):
            return 0.0
        share = jaccard(some, more)
        return share if share >= self.step.threshold else 0.0


def _code(data: bytes) -> PictureCode:
    try:
        return picture_code(data)
    except DataError:  # one of its own kind: PictureFilter is the step that drops it
        own = np.frombuffer(blake2b(data, digest_size=64).digest() * 64, np.uint8)
        return PictureCode(own[: SIDE * SIDE * 3], own[: FINE * FINE])


def _band_keys(signature: np.ndarray) -> np.ndarray:
    """uint32[N, num_perm] -> uint32[N, num_perm / 4 + 1]; the last is of the whole: equal texts always meet."""
    grouped = signature.reshape(len(signature), signature.shape[1] // ROWS, ROWS).astype(np.uint64)
    keys, whole = np.full(grouped.shape[:2], _SEED, np.uint64), np.full((len(signature), 1), _SEED, np.uint64)
    for place in range(ROWS):
        keys = _mixed(keys, grouped[:, :, place])
    for band in range(keys.shape[1]):
        whole = _mixed(whole, keys[:, band : band + 1])
    return np.concatenate([keys, whole], 1).astype(np.uint32)


def _mixed(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    keys = (keys ^ values) * np.uint64(0xFF51AFD7ED558CCD)
    return keys ^ (keys >> np.uint64(32))


def _neighbours(keys: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Pairs i < j of equal keys: each with the `WINDOW` before it, and with the first of all."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    head = np.flatnonzero(new)[np.cumsum(new) - 1] if len(keys) else np.zeros(0, np.int64)
    place = np.arange(len(keys))
    far = place - head > WINDOW
    yield order[head[far]], order[far]
    for distance in range(1, WINDOW + 1):
        same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
        if not len(same):
            return
        yield order[same], order[same + distance]


def _groups(sketches: Any, count: int, max_rms: float) -> np.ndarray:
    """int64[count]: the same number for rows whose pictures are alike, one by one; 0 for rows without."""
    kinds = _kinds(sketches, max_rms)
    starts = [np.full(len(part), start) for part, start in zip(sketches.parts("picture_row"), sketches.starts)]
    numbers = sketches.column("picture_row") + (np.concatenate(starts) if starts else 0)
    of_row: dict[int, list[int]] = defaultdict(list)
    for row, picture in zip(numbers.astype(np.int64).tolist(), sketches.column("picture_hash").tolist()):
        of_row[row].append(kinds[picture])
    groups, found = np.zeros(count, np.int64), dict[tuple[int, ...], int]()
    for row, pictures in of_row.items():
        groups[row] = found.setdefault(tuple(pictures), len(found) + 1)
    return groups


def _kinds(sketches: Any, max_rms: float) -> dict[int, int]:
    """Hash of a picture -> the kind that it shares with all pictures that a chain of like ones leads to."""
    hashes, first = np.unique(sketches.column("code_hash"), return_index=True)
    codes = sketches.rows("coarse")(first) if len(first) else np.zeros((0, SIDE * SIDE * 3), np.uint8)
    fine = sketches.rows("fine")
    parent = list(range(len(hashes)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for left, right in PictureGrid(codes, lambda numbers: fine(first[numbers]), max_rms).pairs():
        for one, other in zip(left.tolist(), right.tolist()):
            high, low = sorted((root(one), root(other)), reverse=True)
            parent[high] = low
    return {int(picture): root(number) for number, picture in enumerate(hashes.tolist())}
