"""What a resampled run shows: shares over tokens as a picture, sources and most repeated samples as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluelm_lightning.data.sample_ledger import SampleLedger
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Source

_MOST = 20  # samples in the table


def page(
    rows: Sequence[dict[str, Any]], ledger: SampleLedger, sources: dict[str, Source], settings: dict[str, Any]
) -> str:
    """Markdown, see :meth:`KeyDataResampler.page`."""
    lines = ["# Key data resampling", "", ", ".join(f"{key}: {value}" for key, value in settings.items()), ""]
    lines += _table(
        ["source", "samples", "share at first", "share now", "tokens", "epochs", "epochs, all stages", "most", "loss"],
        [
            [
                row["source"],
                row["samples"],
                f"{row['prior']:.3f}",
                f"{row['share']:.3f}",
                row["tokens"],
                f"{row['epochs']:.2f}",
                f"{row['epochs_all']:.2f}",
                f"{row['most_seen']}" + (f" of {row['limit']}" if row["limit"] else ""),
                _number(row["loss"]),
            ]
            for row in rows
        ],
    )
    lines += ["", f"## The {_MOST} most repeated samples", ""]
    repeated = []
    for name, index, times in ledger.most_seen(list(sources), _MOST):
        columns = ledger.sources[name].columns
        stale = ledger.clock - int(columns["last"][index])
        figures = [_number(float(columns[key][index])) for key in ("loss", "rate")]
        repeated.append([name, _id_of(sources[name], index), times, *figures, stale])
    lines += _table(["source", "sample", "times seen", "loss", "pass rate", "steps since"], repeated)
    return "\n".join(lines) + "\n"


def draw_shares(path: Path, names: Sequence[str], totals: Sequence[Sequence[int]]) -> None:
    """Stacked areas: which share of its tokens each period took from each source, over the tokens trained on.

    Args:
        path: PNG to write.
        names: of the sources.
        totals: tokens of each source up to the end of each period.
    """
    from matplotlib.figure import Figure  # no display, no global state

    edges, shares = [0.0], []
    before = [0] * len(names)
    for now in totals:
        new = [b - a for a, b in zip(before, now)]
        if sum(new):
            edges.append(float(sum(now)))
            shares.append([n / sum(new) for n in new])
        before = list(now)
    if not shares:
        return
    figure = Figure(figsize=(6.4, 3.2))
    axis: Any = figure.subplots()
    columns = list(zip(*[shares[0], *shares]))
    axis.stackplot(edges, *columns, labels=names, step="pre")
    axis.set(xlabel="tokens trained on", ylabel="share of tokens", ylim=(0, 1), xlim=(0, edges[-1]))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _id_of(source: Source, index: int) -> str:
    try:
        return source[index].id
    except DataError:
        return f"number {index}"


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [list(head), ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]
