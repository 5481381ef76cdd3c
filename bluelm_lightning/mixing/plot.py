"""The trade-off as a picture: what each source's share does to each held-out loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bluelm_lightning.mixing.propose import Proposal

_COLUMNS = 3


def draw(
    path: Path,
    names: list[str],
    sets: list[str],
    goal: np.ndarray,
    shares: np.ndarray,
    losses: np.ndarray,
    proposal: Proposal,
) -> None:
    """A PNG: the proposal beside uniform, the laws against what was measured, and a trade-off for each source.

    In a trade-off one share moves over the range of the proxies, and the others keep their proportions in the proposal.
    """
    from matplotlib.figure import Figure  # no display, no global state

    rows = -(-(2 + len(names)) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 3.3 * rows))
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    _bars(axes[0], names, proposal)
    _agreement(axes[1], sets, shares, losses, proposal)
    for number, name in enumerate(names):
        _trade_off(axes[2 + number], number, name, sets, goal, shares, proposal)
    for axis in axes[2 + len(names) :]:
        axis.set_visible(False)
    axes[2].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _bars(axis, names: list[str], proposal: Proposal) -> None:
    errors = [np.maximum(proposal.shares - proposal.low, 0), np.maximum(proposal.high - proposal.shares, 0)]
    axis.bar(range(len(names)), proposal.shares, yerr=errors, color="#1f6feb", capsize=3)
    axis.axhline(1 / len(names), color="#8a9bb0", linestyle="--", label="uniform")
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=20)
    axis.set_title("proposed shares, 95 % intervals", fontsize=9)
    axis.legend(fontsize=7)


def _agreement(axis, sets: list[str], shares: np.ndarray, losses: np.ndarray, proposal: Proposal) -> None:
    for number, name in enumerate(sets):
        law = proposal.laws[number]
        axis.plot(losses[:, number], law.predict(shares), ".", label=f"{name} (left out: {law.error:.3f})")
    ends = [losses.min(), losses.max()]
    axis.plot(ends, ends, color="#8a9bb0", linewidth=0.8)
    axis.set_title("law against measured loss, nats", fontsize=9)
    axis.legend(fontsize=7)


def _trade_off(
    axis, number: int, name: str, sets: list[str], goal: np.ndarray, shares: np.ndarray, proposal: Proposal
) -> None:
    moved = np.linspace(shares[:, number].min(), shares[:, number].max(), 40)
    others = np.delete(proposal.shares, number) / (1 - proposal.shares[number])
    rows = np.array([np.insert(others * (1 - share), number, share) for share in moved])
    curves = np.array([law.predict(rows) for law in proposal.laws])
    for curve, held_out in zip(curves, sets):
        axis.plot(moved, curve, linewidth=1, label=held_out)
    axis.plot(moved, goal @ curves, color="black", linewidth=2, label="weighted mean")
    axis.axvline(proposal.shares[number], color="#1f6feb", linestyle=":")
    axis.set_title(f"share of {name}", fontsize=9)
    axis.set_ylabel("held-out loss, nats", fontsize=8)
