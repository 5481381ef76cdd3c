"""ExactDuplicates: records that say the same, letter by letter and pixel file by pixel file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Decision, Global


def body_hash(record: Record) -> bytes:
    """16 bytes of what a model would see: turns or text, and the pictures' bytes. No id, source or meta."""
    digest = hashlib.blake2b(digest_size=16)
    text = record.data.get("text")
    turns = text if text is not None else record.data.get("messages")
    digest.update(json.dumps(turns, ensure_ascii=False, sort_keys=True).encode())
    for data in record.images():
        digest.update(hashlib.blake2b(data, digest_size=16).digest())
    return digest.digest()


class ExactDuplicates(Global):
    """Keeps the first of records with the same turns or text and the same bytes of pictures; ids may differ."""

    def sketch(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        held = b"".join(map(body_hash, records))
        return {"hash": np.frombuffer(held, np.uint64).reshape(-1, 2)}

    def decide(self, sketches: Any, rows: Any) -> Decision:
        hashes = sketches.column("hash")
        decision = Decision.keep_all(len(hashes))
        if not len(hashes):
            return decision
        order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
        ordered = hashes[order]
        new = np.ones(len(order), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(1)
        first = order[np.flatnonzero(new)][np.cumsum(new) - 1]  # the earliest row of each row's group
        decision.names = ["exact duplicate"]
        decision.reason[order[~new]] = 1
        assert decision.match is not None
        decision.match[order[~new]] = first[~new]
        return decision
