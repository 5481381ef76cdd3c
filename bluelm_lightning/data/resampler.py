"""KeyDataResampler: observations of the documents trained on -> ledger -> policy -> shares of the next batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluelm_lightning.data.policies import PERIODS, SourceFigures
from bluelm_lightning.data.resampling_report import draw_shares, page
from bluelm_lightning.data.sample_ledger import SampleLedger, SourceLedger
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Ref, SharePolicy, Source

# An observation: step, three numbers of a Ref; losses, labelled tokens, tokens, pass rate (NaN = none), 1 for a prompt.
_Row = tuple[int, int, int, int, float, float, float, float, float]
_NAN = float("nan")


class KeyDataResampler:
    """Keeps the ledger and decides shares. The same in every process: observations are exchanged before they count.

    A decision after step ``s`` holds from the batches of step ``s + lag`` on, whatever has been fetched by then, so a
    resumed run, and a run with another number of workers, sees the same batches.

    Args:
        names: of the sources, in the order of the mixture.
        sources: the sources.
        prior: share of each without resampling.
        policy: figures -> shares.
        ledger: file of the ledger; ``None`` = in the checkpoints alone.
        run: name of this run, by which the ledger knows its own figures.
        lag: steps (collections, for prompts) between a decision and the first batch it holds for.
        turn_of: step -> number by which batches are asked for; for prompts the collection, else the step.
        limits: most times that a sample of each source may be seen, for the page.
    """

    def __init__(
        self,
        names: list[str],
        sources: Sequence[Source],
        prior: Sequence[float],
        policy: SharePolicy,
        ledger: Path | None = None,
        run: str = "",
        lag: int = 4,
        turn_of: Callable[[int], int] = int,
        limits: Sequence[int | None] = (),
    ) -> None:
        if len(set(names)) < len(names):
            raise ConfigError(f"two sources are called alike: {names}; give each a name", "data.sources.name")
        self.names, self.sources, self.policy, self.path, self.run = names, sources, policy, ledger, run
        self.prior = [share / sum(prior) for share in prior]
        self.lag, self.turn_of = lag, turn_of
        self.limits = list(limits) or [None] * len(names)
        contents = {n: (len(s), str(getattr(s, "fingerprint", ""))) for n, s in zip(names, sources)}
        self.ledger = SampleLedger.begin(ledger, run, contents)
        self._set_before(self.ledger.state_dict())
        self.moves: list[tuple[int, list[float]]] = []  # first turn, shares
        self.history: list[tuple[int, list[int]]] = []  # for the picture: step of a decision, tokens by source until it
        self._sums = [[0.0, 0.0, 0.0] for _ in names]  # losses, labelled tokens, tokens since the last decision
        self._fresh: list[tuple[int, list[Ref], list[Any]]] = []
        self._asked = -1  # last turn whose shares were asked for
        self._decide(0, 0)

    def _set_before(self, state: dict[str, Any]) -> None:
        self._before = state
        held = SampleLedger()
        held.load_state_dict(state)
        self.before = [held.sources[name].columns["seen"] for name in self.names]
        self._clock = held.clock
        self._tokens = [held.sources[name].totals.tokens for name in self.names]

    # ------------------------------------------------------------------ a schedule, as the data module asks for it
    @property
    def settings(self) -> dict[str, Any]:
        return {**self.policy.settings, "lag": self.lag}

    def value_at(self, step: int) -> dict[str, float]:
        """Share of each source; they sum to 1."""
        self._asked = max(self._asked, step)
        place = bisect_right([turn for turn, _ in self.moves], step)
        return dict(zip(self.names, self.moves[max(place - 1, 0)][1]))

    # ------------------------------------------------------------------ observations
    def observe(self, step: int, refs: list[Ref], sums: Any, labelled: Any, tokens: Any) -> None:
        """The D documents of a micro-batch of ``step``: summed losses, labelled tokens, tokens [D], on any device."""
        zeros = torch.zeros(len(refs))
        self._fresh.append((step, list(refs), [sums, labelled, tokens, zeros + _NAN, zeros]))

    def observe_rates(self, step: int, refs: list[Ref], rates: list[float]) -> None:
        """Prompts that were asked, and the share of right answers to each; NaN where nothing judged them."""
        zeros = torch.zeros(len(refs))
        self._fresh.append((step, list(refs), [zeros, zeros, zeros, torch.tensor(rates), zeros + 1]))

    def gather(self) -> None:
        """Bring every process's observations into the ledger, in one order. All processes must call it."""
        rows: list[_Row] = []
        for step, refs, columns in self._fresh:
            values = torch.stack([column.detach().cpu().double() for column in columns], dim=1).tolist()
            rows += [(step, *ref, *value) for ref, value in zip(refs, values)]
        self._fresh = []
        dist = torch.distributed
        if dist.is_available() and dist.is_initialized():
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, rows)
            rows = [row for part in everyone for row in part]
        rows.sort(key=lambda row: row[:4])  # stable: parts of a document add up in the order of processes
        for key, parts in groupby(rows, key=lambda row: row[:4]):
            self._enter(key, np.array([part[4:] for part in parts]))

    def _enter(self, key: tuple[int, int, int, int], parts: np.ndarray) -> None:
        step, source, epoch, index = key
        loss, labelled, tokens = (float(parts[:, n].sum()) for n in range(3))
        if not np.isfinite(loss):  # as in a step that LossSpikes skips: no loss, or every later mean would be none
            loss = labelled = 0.0
        ledger = self.ledger.sources[self.names[source]]
        values = {"loss": loss / labelled} if labelled else {}
        if not np.isnan(parts[:, 3]).all():
            values["rate"] = float(np.nanmean(parts[:, 3]))
        self.ledger.clock = max(self.ledger.clock, self._clock + step + 1)
        # a document comes once in each pass; a prompt is asked where no ledger of pass rates passes over it
        before = ledger.columns["seen"][index] if parts[0, 4] else self.before[source][index] + epoch
        ledger.record(index, int(before) + 1, self._clock + step + 1, **values)
        ledger.totals.tokens += int(tokens)
        ledger.totals.labelled += int(labelled)
        for n, value in enumerate((loss, labelled, tokens)):
            self._sums[source][n] += value

    # ------------------------------------------------------------------ decisions
    def decide(self, step: int) -> None:
        """Ask the policy after ``step`` steps. All processes must call it."""
        self.gather()
        for source, (loss, labelled, count) in zip(self._mine(), self._sums):
            if labelled:
                source.totals.periods = [*source.totals.periods, [count, loss / labelled]][-PERIODS:]
        self._sums = [[0.0, 0.0, 0.0] for _ in self.names]
        tokens = [source.totals.tokens - old for source, old in zip(self._mine(), self._tokens)]
        self.history.append((step, tokens))
        self._decide(step, self.turn_of(step - 1) + self.lag)

    def _decide(self, step: int, turn: int) -> None:
        if self._asked >= turn:
            raise RuntimeError(f"shares of batch {self._asked} were asked for before they were decided: lag {self.lag}")
        given = self._weights(self.policy.shares(self.figures(), step))
        if self.moves and self.moves[-1][0] == turn:
            self.moves.pop()
        self.moves.append((turn, [weight / sum(given) for weight in given]))

    def _weights(self, shares: Any) -> list[float]:
        """What the policy returned, in the order of the sources. Raises ConfigError for what are no shares."""
        wrong = "cannot be used"
        if isinstance(shares, Mapping):
            missing = [name for name in self.names if name not in shares]
            try:
                given = [float(shares[name]) for name in self.names if not missing]
            except (TypeError, ValueError):
                given = []
            if given and min(given) >= 0 and 0 < sum(given) < float("inf"):
                return given
            if missing:
                wrong = f"leave out {', '.join(missing)}"
        text = f"the shares that {type(self.policy).__name__} returned {wrong}: {shares!r:.300}"
        rule = "return a number for each source, none negative and one above 0"
        raise ConfigError(f"{text}; {rule}", "trainer.callbacks.policy")

    def figures(self) -> dict[str, SourceFigures]:
        """What the policy is asked with."""
        found = {}
        for name, prior, source in zip(self.names, self.prior, self._mine()):
            rates = source.columns["rate"]
            known = rates[~np.isnan(rates)]
            found[name] = SourceFigures(len(source), prior, self.ledger.stage, source.totals.periods, known)
        return found

    def known_rates(self) -> dict[tuple[int, int], float]:
        """Pass rate by (source, index) of every prompt that was ever asked."""
        columns = [source.columns["rate"] for source in self._mine()]
        return {(n, int(i)): float(rates[i]) for n, rates in enumerate(columns) for i in np.flatnonzero(rates == rates)}

    def _mine(self) -> list[SourceLedger]:
        return [self.ledger.sources[name] for name in self.names]

    # ------------------------------------------------------------------ what stays
    def save(self) -> None:
        """The ledger into its file; the first process alone calls it."""
        if self.path is not None:
            self.ledger.save(self.path, self.run, self._before)

    def state_dict(self) -> dict[str, Any]:
        """Lists, numbers and tensors only. All processes must call it."""
        self.gather()
        return {
            "ledger": _with_tensors(self.ledger.state_dict()),
            "before": _with_tensors(self._before),
            "moves": [list(move) for move in self.moves],
            "history": [list(entry) for entry in self.history],
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ledger.load_state_dict(state["ledger"])
        self._set_before(_with_arrays(state["before"]))
        self.moves = [(turn, list(shares)) for turn, shares in state["moves"]]
        self.history = [(step, list(tokens)) for step, tokens in state["history"]]
        self._sums = [list(pair) for pair in state["sums"]]

    # ------------------------------------------------------------------ what it shows
    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a source, for the log and the page."""
        out = []
        known = self.figures()
        for number, (name, source) in enumerate(zip(self.names, self._mine())):
            seen = source.columns["seen"]
            here = int((seen - self.before[number]).sum())
            out.append(
                {
                    "source": name,
                    "samples": len(source),
                    "prior": self.prior[number],
                    "share": self.moves[-1][1][number],
                    "tokens": source.totals.tokens - self._tokens[number],
                    "epochs": here / len(source),
                    "epochs_all": int(seen.sum()) / len(source),
                    "most_seen": int(seen.max()),
                    "limit": self.limits[number],
                    "loss": known[name].loss,
                }
            )
        return out

    def page(self) -> str:
        """Markdown: a table of the sources, and one of the samples that were seen most often."""
        return page(self.rows, self.ledger, dict(zip(self.names, self.sources)), self.policy.settings)

    def draw(self, path: Path) -> None:
        """A PNG of the shares of tokens, stacked, over the tokens trained on."""
        draw_shares(path, self.names, [tokens for _, tokens in self.history])


def _with_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint holds no NumPy arrays: nothing in it needs unpickling."""
    return {**state, "rows": [{name: torch.from_numpy(a.copy()) for name, a in t.items()} for t in state["rows"]]}


def _with_arrays(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "rows": [{name: a.numpy() for name, a in table.items()} for table in state["rows"]]}
