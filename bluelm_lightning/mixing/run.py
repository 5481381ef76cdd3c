"""Proxies trained and measured, and the proposal made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.mixing.design import near, spread
from bluelm_lightning.mixing.plan import HeldOut, MixPlan, StageSources
from bluelm_lightning.mixing.propose import propose
from bluelm_lightning.recipe.runs import Runs, literal
from bluelm_lightning.types import Sample


class Proxies:
    """Trains a proxy a mixture, and scores it; a finished one is neither run nor scored again.

    Args:
        plan: see :class:`MixPlan`.
        runs: where; default: ``plan.out``.

    Raises:
        ConfigError: too few proxies for the stage's sources, or as :class:`StageSources`.
    """

    def __init__(self, plan: MixPlan, runs: Runs | None = None) -> None:
        self.plan, self.sources = plan, StageSources(plan.stage, plan.unit)
        least = len(self.sources.names) + 2  # what a law needs
        if plan.first < least:
            raise ConfigError(f"{plan.first} is below {least}, the sources and two more; raise it", "first")
        self.runs = runs or Runs(Path(plan.out), self.sources.key(plan.parents))
        self.samples = {str(held.name): held_out_samples(held) for held in plan.held_out}

    def folder(self, shares: np.ndarray) -> Path:
        """The run folder of a mixture float[K], trained if it is not there."""
        sources = json.dumps(self.sources.at(shares))
        name = f"proxy-{hashlib.sha256(sources.encode()).hexdigest()[:10]}"
        settings = {**self.plan.settings, "data.sources": sources}
        options = [literal(f"--{key}={_spelled(value)}") for key, value in settings.items()]
        return self.runs.fit(name, str(self.sources.config), self.plan.parents, options)

    def losses(self, shares: np.ndarray) -> np.ndarray:
        """float[H], held-out losses of the proxy of a mixture float[K], in nats."""
        folder = self.folder(shares)
        return np.array(list(scored(folder, self.samples).values()))


def held_out_samples(held: HeldOut) -> list[Sample]:
    """``count`` samples, evenly over the set."""
    from bluelm_lightning.data.shards import ShardSource

    source = ShardSource(held.path)
    count = min(held.count, len(source))
    return [source[number * len(source) // count] for number in range(count)]


def scored(folder: Path, sets: dict[str, list[Sample]]) -> dict[str, float]:
    """Mean loss over the labelled tokens of each set, in nats; kept in the run's folder."""
    key = (folder / "done.key").read_text() + hashlib.sha256(repr(sets).encode()).hexdigest()
    note = folder / "held_out.json"
    held = _noted(note)
    if held.get("key") == key and list(held.get("losses", ())) == list(sets):
        return held["losses"]
    from bluelm_lightning.cli.load import load_run
    from bluelm_lightning.recipe.probes import probe

    stage, data = load_run(folder)
    losses = {}
    for name, samples in sets.items():
        score = probe(stage.vlm, data.encoder, samples)
        if not score.count:
            raise DataError("no sample of it can be read by the stage's model; choose another set", f"held_out {name}")
        losses[name] = score.loss
    write_json(note, {"key": key, "losses": losses})
    return losses


def _noted(note: Path) -> dict[str, Any]:
    """What was scored before; nothing where the file is damaged, for scoring again costs little."""
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def explore(
    score: Callable[[np.ndarray], np.ndarray],
    count: int,
    weights: Sequence[float],
    first: int,
    later: int,
    smallest: float,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Both rounds: mixtures spread over all, then mixtures around the minimum that these predict.

    Args:
        score: shares float[K] -> held-out losses float[H], in nats: trains a proxy.
        count: K, sources.
        weights: float[H], of the held-out losses.
        first, later, smallest, resamples, seed: see :class:`MixPlan`.

    Returns:
        Shares float[N, K] and losses float[N, H]; the first row is uniform.
    """
    shares = spread(first, count, smallest, seed)
    losses = np.array([score(row) for row in shares])
    if later:
        around = near(propose(shares, losses, weights, resamples, seed).shares, later, smallest, seed)
        shares, losses = np.vstack([shares, around]), np.vstack([losses, [score(row) for row in around]])
    return shares, losses


def run_mixing(plan: MixPlan, say: Callable[[str], None] = print, runs: Runs | None = None) -> dict[str, Any]:
    """Everything that ``bluelm-mix`` does; returns what it writes to ``mixture.json``. ``runs``: as for `Proxies`.

    The proposed mixture is trained as one more proxy, so that its predicted loss stands beside a measured one.
    """
    from bluelm_lightning.mixing.report import write_report

    proxies, weights = Proxies(plan, runs), [held.weight for held in plan.held_out]

    def score(mixture: np.ndarray) -> np.ndarray:
        losses = proxies.losses(mixture)
        parts = "  ".join(f"{name} {share:.3f}" for name, share in zip(proxies.sources.names, mixture))
        say(parts + " -> " + "  ".join(f"{name} {loss:.3f}" for name, loss in zip(proxies.samples, losses)))
        return losses

    rounds = (plan.first, plan.later, plan.smallest, plan.resamples, plan.seed)
    shares, losses = explore(score, len(proxies.sources.names), weights, *rounds)
    proposal = propose(shares, losses, weights, plan.resamples, plan.seed)
    return write_report(plan, proxies, shares, losses, proposal, score(proposal.shares))


def _spelled(value: Any) -> str:
    """A value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
