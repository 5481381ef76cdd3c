"""What a claim is, and what measuring it gives.

A claim is one file of this room, ``claim_N.py``, with two names::

    CLAIM = Claim(number=N, claim="...", report="...", baseline="...", unit="nats", tried="...")
    def measure(lab: Lab, seed: int) -> Measured: ...

Nothing else lists it. Measure both arms from the same seed, data and steps, so that their difference is paired.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.evaluation.statistics import mean_interval

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """A claim of the report, and how it is put to the test.

    Args:
        number: of the claim; its file is ``claim_NUMBER.py``.
        claim: one sentence.
        report: what the report says.
        baseline: what it is compared with.
        unit: of the gain, such as ``nats`` or ``points``.
        bar: the claim holds when the lower end of the gain's interval is above it.
        tried: setting and measure, and what else was tried; it is shown also when the claim does not hold.
    """

    number: int
    claim: str
    report: str
    baseline: str
    unit: str
    bar: float = 0.0
    tried: str = ""


@dataclass
class Measured:
    """One seed.

    Args:
        ours: figure of the report's way.
        baseline: figure of the other.
        gain: positive when the claim is right.
        details: further figures by name; their means over seeds are shown.
    """

    ours: float
    baseline: float
    gain: float
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimFile:
    """A claim's file, imported when it is asked for."""

    number: int
    path: Path
    module: str

    @property
    def claim(self) -> Claim:
        return importlib.import_module(self.module).CLAIM

    @property
    def measure(self) -> Callable[[Any, int], Measured]:
        return importlib.import_module(self.module).measure


def find_claims(wanted: Sequence[int] = ()) -> list[ClaimFile]:
    """The claims of this room in order; all of them unless some numbers are ``wanted``.

    Raises:
        ConfigError: a number without a file.
    """
    found = {int(path.stem.removeprefix("claim_")): path for path in HERE.glob("claim_*.py")}
    unknown = [number for number in wanted if number not in found]
    if unknown:
        have = ", ".join(map(str, sorted(found)))
        raise ConfigError(f"no claim has number {unknown[0]}; there are {have}", "--claims")
    numbers = sorted(set(wanted) or found)
    return [ClaimFile(n, found[n], f"{__package__}.claim_{n}") for n in numbers]


def row_of(claim: Claim, measured: Sequence[Measured], command: str, key: str) -> dict[str, Any]:
    """The claim's row of ``reproduction.json``: means over seeds, and the 95 % interval of the gain.

    ``ours`` is the mean gain, ``low`` and ``high`` its interval; all in ``unit``.
    """
    gain, low, high = mean_interval([one.gain for one in measured])
    names = measured[0].details
    mean = {name: _mean([one.details[name] for one in measured]) for name in names}
    return {
        "claim": claim.claim,
        "report": claim.report,
        "ours": gain,
        "low": low,
        "high": high,
        "baseline": f"{claim.baseline}: {_mean([one.baseline for one in measured]):.4g}",
        "holds": low > claim.bar,
        "seeds": len(measured),
        "command": command,
        "unit": claim.unit,
        "bar": claim.bar,
        "figure": _mean([one.ours for one in measured]),
        "gains": [one.gain for one in measured],
        "details": mean,
        "tried": claim.tried,
        "key": key,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
