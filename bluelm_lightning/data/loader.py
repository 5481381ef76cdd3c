"""PackedLoader: sources -> packed batches, with a state that makes a resumed run see exactly the same batches.

The main process decides the order (:class:`Mixture`) and packs; workers only read and encode, so they hold no state:
the same batches come out with any number of workers, also when that number changes at a resume. The state after a batch
is where the mixture stands and which samples wait to be packed; a resume encodes those few again.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from bluelm_lightning.data.balance import LOOKAHEAD, choose_balanced
from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.packing import choose_rows, pack, split_text
from bluelm_lightning.data.pairs import parts_of
from bluelm_lightning.data.read_ahead import CHUNK, ReadAhead
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Encoded, PackedBatch, Ref, Skipped

log = logging.getLogger(__name__)

_KEEP_STATES = 16  # Lightning fetches one batch ahead; a few more do no harm


@dataclass(frozen=True)
class PackingPlan:
    """Size of a batch and what to do with a sample that does not fit.

    Args:
        row_tokens: tokens of a row.
        rows: rows of a batch.
        max_tiles: most tiles in a batch; ``None`` = no bound.
        overlong: ``skip`` reports and leaves out, ``split`` cuts texts without pictures and no pairs, ``error`` stops.
        lookahead: samples are chosen from about this many batches' worth.
        balance: batches of even numbers of tiles, see ``data/balance.py``; it looks further ahead.
    """

    row_tokens: int
    rows: int = 1
    max_tiles: int | None = None
    overlong: str = "skip"
    lookahead: float = 2.0
    balance: bool = False

    def __post_init__(self) -> None:
        if self.overlong not in ("skip", "split", "error"):
            raise ConfigError(f"{self.overlong!r} is not one of skip, split, error", "data.overlong")


@dataclass
class _Pending:
    ref: Ref
    piece: int  # which part of a split text
    doc: Encoded
    row_tokens: int  # of the row it was admitted to


class Course(Protocol):
    """What batch number ``cursor`` is like. A function of the number alone, so that a resumed run meets the same."""

    def plan_at(self, cursor: int) -> PackingPlan: ...

    def weights_at(self, cursor: int) -> list[float] | None: ...


# What was read, and where the mixture stands after it.
_Chunk = tuple[list[Ref], list[Encoded | Skipped], dict[str, Any]]


class PackedLoader:
    """An iterable of :class:`PackedBatch`. Without end unless every source has a number of epochs.

    Each iteration begins after the last batch marked: training goes on where the model stands, also when
    ``limit_train_batches`` cut an epoch short, and in another round of the mixture when one is over. Validation marks
    none and sees the same batches each time.

    Args:
        fetcher: reads and encodes.
        mixture: the order.
        plan: size of a batch.
        pad_id: token id of padding.
        num_workers: processes that read and encode; 0 = this one.
        rank: this process among ``world_size``; it takes as many samples as each other.
        world_size: number of training processes. Where they end at different batches, the early ones get empty batches.
        max_consecutive_skips: stop when so many samples in a row cannot be used, instead of looping in silence.
        course: what size and which shares a batch has, by its number; default: those of plan and mixture.
    """

    def __init__(
        self,
        fetcher: SampleFetcher,
        mixture: Mixture,
        plan: PackingPlan,
        pad_id: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_consecutive_skips: int = 100,
        course: Course | None = None,
    ) -> None:
        self.fetcher, self.mixture, self.plan, self.pad_id = fetcher, mixture, plan, pad_id
        self.num_workers, self.rank, self.world_size = num_workers, rank, world_size
        self.max_consecutive_skips, self.course = max_consecutive_skips, course
        self.skipped: Counter[str] = Counter()
        self._consecutive = 0
        self._states: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self.marked: dict[str, Any] = {"cursor": -1, "mixture": mixture.state_dict(), "waiting": [], "skipped": {}}

    def state_at(self, cursor: int) -> dict[str, Any]:
        """The state after batch ``cursor``, of lists and numbers only. Raises KeyError if that batch is long gone."""
        return self.marked if cursor == self.marked["cursor"] else self._states[cursor]

    def mark(self, cursor: int) -> None:
        """The model was trained on batch ``cursor``: what is ``marked`` goes into a checkpoint."""
        self.marked = self.state_at(cursor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.marked = state

    def __iter__(self) -> Iterator[PackedBatch]:
        cursor, stood = self.marked["cursor"], self.marked["mixture"]
        self.mixture.share_out(self.rank, self.world_size)
        self.mixture.load_state_dict(stood)
        self.skipped, self._consecutive = Counter(self.marked["skipped"]), 0
        self._follow(cursor + 1)
        pending = list(self._fetch_waiting(self.marked["waiting"]))
        stream = self._stream()
        stood = self._fill(pending, stream, stood)
        anyone = self._anyone(pending)
        if cursor >= 0 and not anyone:  # the batch marked was the last of a round
            self.mixture.renew()
            stream = self._stream()
            stood = self._fill(pending, stream, stood)
            anyone = self._anyone(pending)
        if self.mixture.spent and not anyone:
            reason = f"after {cursor + 1} batches every sample has been seen max_repeats times"
            raise DataError(f"{reason}; raise data.sources.max_repeats, add data, or set fewer steps")
        if self.skipped and not anyone:
            raise DataError(f"no sample can be used, skipped by source: {dict(self.skipped)}; see the reasons above")
        while anyone:
            cursor += 1
            batch, pending = self._pack(pending, cursor)
            waiting = [[list(p.ref), p.piece, p.row_tokens] for p in pending]
            skipped = dict(self.skipped)
            self._states[cursor] = {"cursor": cursor, "mixture": stood, "waiting": waiting, "skipped": skipped}
            while len(self._states) > _KEEP_STATES:
                self._states.popitem(last=False)
            self._follow(cursor + 1)
            yield batch
            stood = self._fill(pending, stream, stood)
            anyone = self._anyone(pending)

    def _follow(self, cursor: int) -> None:
        """Size and shares of the batch that is filled next."""
        if self.course is not None:
            self.plan = self.course.plan_at(cursor)
            weights = self.course.weights_at(cursor)
            if weights is not None:
                self.mixture.set_weights(weights)

    def _fill(self, pending: list[_Pending], stream: Iterator[_Chunk], stood: dict[str, Any]) -> dict[str, Any]:
        """Read until some batches' worth is pending; returns where the mixture stands then."""
        wanted = self.plan.lookahead * self.plan.rows * self.plan.row_tokens * (LOOKAHEAD if self.plan.balance else 1)
        while sum(len(p.doc) for p in pending) < wanted and (chunk := next(stream, None)):
            refs, items, stood = chunk
            for ref, item in zip(refs, items):
                pending += self._admit(ref, item)
        return stood

    def _anyone(self, pending: list[_Pending]) -> bool:
        """Whether any process has documents left: all must see equally many batches, or some would wait forever.

        All must ask equally often, too: never only where something holds that may hold of one process alone.
        """
        dist = torch.distributed
        if self.world_size == 1 or self.mixture.endless or not (dist.is_available() and dist.is_initialized()):
            return bool(pending)
        votes: list[Any] = [None] * dist.get_world_size()  # more than world_size, where processes share rows
        dist.all_gather_object(votes, bool(pending))
        return any(votes)

    def _pack(self, pending: list[_Pending], cursor: int) -> tuple[PackedBatch, list[_Pending]]:
        plan = self.plan
        lengths, tiles = [len(p.doc) for p in pending], [len(p.doc.tiles) for p in pending]
        choose = choose_balanced if plan.balance else choose_rows
        rows = choose(lengths, tiles, plan.rows, plan.row_tokens, plan.max_tiles)
        taken = {i for row in rows for i in row}
        documents = [[part for i in row for part in parts_of(pending[i].doc)] for row in rows]
        batch = pack(documents, plan.row_tokens, self.pad_id, cursor)
        batch.refs = [pending[i].ref for row in rows for i in row for _ in parts_of(pending[i].doc)]
        return batch, [p for i, p in enumerate(pending) if i not in taken]

    def _stream(self) -> Iterator[_Chunk]:
        """This rank's samples, a chunk at a time, with the mixture's state after each."""
        ahead = None
        if self.num_workers:
            ahead = ReadAhead(self.fetcher, self.mixture, self.num_workers)
        while True:
            if ahead is not None:
                ahead.forecast()
            # range first: zip would otherwise draw one reference more and lose it
            refs = [ref for _, ref in zip(range(CHUNK), self.mixture)]
            if not refs:
                return
            yield refs, (ahead or self.fetcher.__getitem__)(refs), self.mixture.state_dict()

    def _fetch_waiting(self, waiting: list[list[Any]]) -> Iterator[_Pending]:
        held: tuple[Ref | None, dict[int, _Pending]] = (None, {})
        for numbers, piece, *row_tokens in waiting:
            ref = Ref(*numbers)
            if held[0] != ref:  # the pieces of a split text stand together: encode it once
                admitted = self._admit(ref, self.fetcher.fetch(ref), *row_tokens)
                held = ref, {p.piece: p for p in admitted}
            if piece not in held[1]:
                raise DataError(f"sample {ref.index} could be used when the run was saved and cannot now; restore it")
            yield held[1][piece]

    def _admit(self, ref: Ref, item: Encoded | Skipped, row_tokens: int | None = None) -> list[_Pending]:
        """The documents of a sample that can be packed; what cannot is reported with its id and the reason.

        ``row_tokens``: of the row that it was first admitted to, when it has waited since; rows may have grown.
        """
        plan = self.plan if row_tokens is None else replace(self.plan, row_tokens=row_tokens)
        if isinstance(item, Encoded):
            reason = misfit(parts_of(item), plan)
            if reason is None:
                self._consecutive = 0
                return [_Pending(ref, 0, item, plan.row_tokens)]
            if is_cut(parts_of(item), plan):
                self._consecutive = 0
                pieces = enumerate(split_text(item, plan.row_tokens))
                return [_Pending(ref, n, doc, plan.row_tokens) for n, doc in pieces]
            item = Skipped(item.id, item.source, reason)
            if plan.overlong == "error":
                raise DataError(f"{reason}; raise data.row_tokens or set data.overlong to skip", f"sample {item.id}")
        self.skipped[item.source] += 1
        self._consecutive += 1
        log.warning("skipped sample %s: %s", item.id, item.reason)
        if self._consecutive >= self.max_consecutive_skips:
            raise DataError(f"{self._consecutive} samples in a row cannot be used; the last: {item.reason}", item.id)
        return []


def misfit(documents: Sequence[Encoded], plan: PackingPlan) -> str | None:
    """Why the documents of a sample, two of a preference, cannot be packed whole; None where they can."""
    tokens, tiles = sum(map(len, documents)), sum(len(doc.tiles) for doc in documents)
    if tokens > plan.row_tokens:
        return f"{tokens} tokens, a row holds {plan.row_tokens}"
    if plan.max_tiles is not None and tiles > plan.max_tiles:
        return f"{tiles} tiles, a batch holds {plan.max_tiles}"
    return None


def is_cut(documents: Sequence[Encoded], plan: PackingPlan) -> bool:
    """Whether a sample that does not fit is cut into pieces: a text without pictures, and no pair of answers."""
    return plan.overlong == "split" and len(documents) == 1 and not len(documents[0].tiles)
