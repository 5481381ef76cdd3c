"""Packing: rows laid out by hand, and properties of the choice over long random streams."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import PER_TILE, TILE, random_doc

from bluelm_lightning.data.packing import choose_rows, pack, split_text
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import IGNORE, Encoded


# ---------------------------------------------------------------- pack
def test_two_rows_by_hand():
    """Row 0: a picture and three tokens, then two tokens, then one of padding. Row 1: full."""
    a, b, c = random_doc(7, 1, 1), random_doc(2, 0, 2, source="text"), random_doc(10, 2, 3)
    batch = pack([[a, b], [c]], row_tokens=10, pad_id=9, cursor=5)
    assert batch.ids.tolist() == [a.ids.tolist() + b.ids.tolist() + [9], c.ids.tolist()]
    assert batch.labels.tolist() == [a.labels.tolist() + b.labels.tolist() + [IGNORE], c.labels.tolist()]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 0], list(range(10))]
    assert batch.segments.tolist() == [[0] * 7 + [1] * 2 + [-1], [2] * 10]
    assert batch.cu_seqlens.tolist() == [0, 7, 9, 10, 20]
    assert batch.max_seqlen == 10
    assert batch.image_positions.tolist() == [0, 1, 2, 3, *range(10, 18)]
    assert batch.tile_segments.tolist() == [0, 2, 2]
    assert torch.equal(batch.tiles, torch.cat([a.tiles, c.tiles]))
    assert (batch.sample_ids, batch.sources) == (["doc1", "doc2", "doc3"], ["tiny", "text", "tiny"])
    assert (batch.cursor, batch.num_tokens) == (5, 19)


def test_kinds_of_numbers_are_those_of_the_record():
    batch = pack([[random_doc(7, 1, 1)]], 8, 0)
    whole = {name: getattr(batch, name).dtype for name in ("ids", "labels", "positions", "segments", "image_positions")}
    assert set(whole.values()) == {torch.int64}
    assert (batch.cu_seqlens.dtype, batch.tiles.dtype) == (torch.int32, torch.uint8)
    assert batch.tile_segments.dtype == torch.int64


def test_no_picture_at_all_keeps_the_tile_side():
    batch = pack([[random_doc(3)]], 8, 0)
    assert batch.tiles.shape == (0, 3, TILE, TILE)
    assert batch.image_positions.shape == batch.tile_segments.shape == (0,)


def test_rows_may_be_empty():
    """A process that ran out of data goes on with empty batches."""
    batch = pack([[random_doc(3)], []], 4, pad_id=0)
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    none = pack([[], []], 4, pad_id=0)
    assert none.cu_seqlens.tolist() == [0, 4, 8]
    assert (none.num_tokens, none.sample_ids, none.max_seqlen) == (0, [], 4)
    assert (none.labels == IGNORE).all()
    assert (none.segments == -1).all()


def test_a_row_that_overflows_is_refused():
    with pytest.raises(ConfigError, match=r"data\.row_tokens: sample doc2 ends at token 9 of a row of 8"):
        pack([[random_doc(5, 0, 1), random_doc(4, 0, 2)]], 8, 0)


def test_any_batch_is_consistent():
    """Read back from the flattened row, every document is what it was."""
    rng = np.random.default_rng(0)
    docs = [random_doc(int(n), int(rng.integers(0, 2)), seed) for seed, n in enumerate(rng.integers(6, 30, 40))]
    rows = choose_rows([len(d) for d in docs], [len(d.tiles) for d in docs], rows=4, row_tokens=64)
    batch = pack([[docs[i] for i in row] for row in rows], 64, pad_id=0)
    bounds, segments = batch.cu_seqlens.tolist(), batch.segments.flatten()
    assert bounds[-1] == 4 * 64
    held = {doc.id: doc for doc in docs}
    number = 0
    for start, end in pairwise(bounds):
        assert batch.positions.flatten()[start:end].tolist() == list(range(end - start))
        assert len(segments[start:end].unique()) == 1
        if segments[start] < 0:
            continue
        doc = held[batch.sample_ids[number]]
        assert int(segments[start]) == number
        assert torch.equal(batch.ids.flatten()[start:end], doc.ids)
        assert torch.equal(batch.labels.flatten()[start:end], doc.labels)
        inside = batch.image_positions[(batch.image_positions >= start) & (batch.image_positions < end)] - start
        assert torch.equal(inside, doc.image_positions), "an image span was cut or moved"
        assert torch.equal(batch.tiles[batch.tile_segments == number], doc.tiles)
        number += 1
    assert number == len(batch.sample_ids) > 8
    owners = segments[batch.image_positions]
    assert torch.equal(owners, batch.tile_segments.repeat_interleave(PER_TILE))


# ---------------------------------------------------------------- choose_rows
CASES = {
    "the oldest, then the longest that fits": (([3, 4, 6, 5], 1, 10, None), [[0, 2]]),
    "the oldest leaves space for two": (([2, 3, 5], 1, 10, None), [[0, 1, 2]]),
    "each row takes the oldest left": (([9, 8, 2, 1], 2, 10, None), [[0, 3], [1, 2]]),
    "more rows than documents": (([4], 3, 10, None), [[0], [], []]),
    "nothing pending": (([], 2, 10, None), [[], []]),
    "an exact fit": (([10, 10, 10], 2, 10, None), [[0], [1]]),
    "equal lengths in their order": (([5, 5, 5], 1, 10, None), [[0, 1]]),
    "tiles are shared by the rows": (([4, 4, 4], 2, 10, 2), [[0, 1], []]),
}


@pytest.mark.parametrize(("given", "wanted"), CASES.values(), ids=CASES)
def test_choices_by_hand(given, wanted):
    lengths, rows, row_tokens, max_tiles = given
    tiles = [1] * len(lengths) if max_tiles is not None else [0] * len(lengths)
    assert choose_rows(lengths, tiles, rows, row_tokens, max_tiles) == wanted


def stream(lengths: np.ndarray, tiles: np.ndarray, rows: int, row_tokens: int, max_tiles: int | None, ahead: float):
    """The choice as the loader makes it: yields (pending, chosen rows) until all documents are gone."""
    pending: list[int] = []
    following = 0
    while following < len(lengths) or pending:
        while following < len(lengths) and lengths[pending].sum() < ahead * rows * row_tokens:
            pending.append(following)
            following += 1
        chosen = choose_rows(list(lengths[pending]), list(tiles[pending]), rows, row_tokens, max_tiles)
        yield pending, [[pending[i] for i in row] for row in chosen]
        taken = {pending[i] for row in chosen for i in row}
        pending = [doc for doc in pending if doc not in taken]


def log_normal(num: int, row_tokens: int, seed: int = 0) -> np.ndarray:
    """Lengths of chat data: median an eighth of a row, a long tail, none longer than a row."""
    lengths = np.random.default_rng(seed).lognormal(np.log(row_tokens / 8), 0.8, num)
    return np.clip(lengths, 8, row_tokens).astype(int)


@pytest.mark.parametrize("max_tiles", [None, 12])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_long_stream_overfills_nothing_and_loses_nothing(rows, max_tiles):
    rng = np.random.default_rng(rows)
    lengths = np.concatenate([log_normal(1500, 512), rng.integers(1, 513, 500)])
    rng.shuffle(lengths)
    tiles = rng.integers(0, 13, len(lengths)) * (rng.random(len(lengths)) < 0.3)
    seen: list[int] = []
    for pending, chosen in stream(lengths, tiles, rows, 512, max_tiles, ahead=2.0):
        assert len(chosen) == rows
        batch = [doc for row in chosen for doc in row]
        assert all(lengths[row].sum() <= 512 for row in chosen if row)
        assert max_tiles is None or tiles[batch].sum() <= max_tiles
        assert pending[0] in chosen[0], "the oldest waits"
        seen += batch
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize(("rows", "most"), [(1, 0.012), (4, 0.007)])
def test_little_of_a_row_is_padding(rows, most):
    """Measured with the loader's look-ahead: 0.85 % with one row in a batch, 0.44 % with four (a row each: 83 %)."""
    lengths = log_normal(4000, 4096)
    batches = [chosen for _, chosen in stream(lengths, np.zeros_like(lengths), rows, 4096, None, ahead=2.0)]
    used = sum(int(lengths[row].sum()) for chosen in batches[:-2] for row in chosen)  # the end cannot be filled
    assert 1 - used / (len(batches[:-2]) * rows * 4096) < most
    assert lengths.mean() / 4096 < 0.2


# ---------------------------------------------------------------- split_text
@pytest.mark.parametrize("length", [1, 9, 10, 11, 30, 31])
def test_a_long_text_keeps_every_token_and_every_label(length):
    doc = random_doc(length, labelled=0.7)
    pieces = split_text(doc, 10)
    assert [len(piece) for piece in pieces] == [10] * (length // 10) + [length % 10] * (length % 10 > 0)
    assert torch.equal(torch.cat([piece.ids for piece in pieces]), doc.ids)
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), doc.labels)
    assert [piece.id for piece in pieces] == [f"{doc.id}#{number}" for number in range(len(pieces))]
    assert all(isinstance(piece, Encoded) and piece.source == doc.source for piece in pieces)
    assert pack([[piece] for piece in pieces], 10, 0).positions[:, 0].eq(0).all()
