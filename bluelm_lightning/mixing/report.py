"""What ``bluelm-mix`` leaves: ``mixture.json``, ``mixture.yaml`` to train with, ``mixture.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from bluelm_lightning.mixing.plan import MixPlan
from bluelm_lightning.mixing.propose import Proposal

if TYPE_CHECKING:
    from bluelm_lightning.mixing.run import Proxies


def write_report(
    plan: MixPlan, proxies: Proxies, shares: np.ndarray, losses: np.ndarray, proposal: Proposal, measured: np.ndarray
) -> dict[str, Any]:
    """Writes the three files into ``plan.out``; returns the JSON.

    Args:
        plan, proxies: what was asked, and where it was run.
        shares, losses: float[N, K] and float[N, H] of the proxies; the first is uniform.
        proposal: see :class:`Proposal`.
        measured: float[H], held-out losses of the proposal's own proxy.
    """
    from bluelm_lightning.mixing.plot import draw

    names, sets = proxies.sources.names, list(proxies.samples)
    goal = np.array([held.weight for held in plan.held_out])
    goal = goal / goal.sum()
    bounds = zip(names, proposal.shares, proposal.low, proposal.high)
    report = {
        "stage": plan.stage,
        "unit": plan.unit,
        "shares": {name: _with_interval(*values) for name, *values in bounds},
        "predicted": _with_interval(*proposal.loss),
        "predicted_gain_over_uniform": _with_interval(*proposal.gain),
        "measured": {"proposed": float(goal @ measured), "uniform": float(goal @ losses[0])},
        "held_out": {
            name: {
                "weight": float(goal[n]), "uniform": float(losses[0, n]), "proposed": float(measured[n]),
                "predicted": float(proposal.losses[n]), "law": proposal.laws[n].form,
                "leave_one_out_error": proposal.laws[n].error, "error_of_the_mean": proposal.laws[n].trivial,
            }
            for n, name in enumerate(sets)
        },
        "proxies": [
            {"shares": dict(zip(names, row.tolist())), "losses": dict(zip(sets, found.tolist()))}
            for row, found in zip(shares, losses)
        ],
    }  # fmt: skip
    out = Path(plan.out)
    (out / "mixture.json").write_text(json.dumps(report, indent=1) + "\n")
    head = f"# Proposed by bluelm-mix from {len(shares)} proxies:\n"
    head += f"#   bluelm-fit --config {plan.stage} --config {out / 'mixture.yaml'}\n"
    body = {"data": {"init_args": {"sources": proxies.sources.at(proposal.shares)}}}
    (out / "mixture.yaml").write_text(head + yaml.safe_dump(body, sort_keys=False))
    draw(out / "mixture.png", names, sets, goal, shares, losses, proposal)
    return report


def _with_interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": float(value), "low": float(low), "high": float(high)}
