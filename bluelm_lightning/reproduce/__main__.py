"""``python -m bluelm_lightning.reproduce``: measure the report's claims, and write the page about them.

Everything goes to ``runs/reproduce``; figures and runs are kept, so a call that was stopped goes on. ``--claims 1,5``
measures some of them. The results: ``docs/reproduction.json`` and ``docs/REPRODUCTION.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path

from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.reproduce.claim import ClaimFile, find_claims, row_of
from bluelm_lightning.reproduce.figures import Figures, code_key
from bluelm_lightning.reproduce.jobs import run_jobs, warm_up
from bluelm_lightning.reproduce.lab import Lab
from bluelm_lightning.reproduce.report import PAGE, update

ROOT, DOCS, SEEDS = Path("runs/reproduce"), Path("docs"), 3


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    started = time.time()

    def say(text: str) -> None:
        print(f"[{time.time() - started:5.0f} s] {text}", flush=True)

    try:
        if args.seeds < 2:
            raise ConfigError(f"{args.seeds} is below 2, which gives no interval; give at least 2", "--seeds")
        claims = find_claims(args.claims)
        failed = measure_all(claims, range(args.seeds), args.jobs, say)
        wanted = [claim for claim in claims if claim.number not in failed]
        report(wanted, args.seeds, say)
    except (ConfigError, OSError) as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    say(f"{DOCS / PAGE} is written" + (f"; not measured: claims {sorted(failed)}" if failed else ""))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("reproduce", description=__doc__)
    numbers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--claims", type=numbers, default=[], metavar="1,5", help="numbers of claims (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"seeds of each (default {SEEDS})")
    cores = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=cores, metavar="N", help="at a time, one thread each (all cores)")
    return parser


def measure_all(claims: Sequence[ClaimFile], seeds: range, jobs: int, say: Callable[[str], None]) -> set[int]:
    """Measure what is missing, seed by seed so that claims share runs; returns the numbers of claims that failed."""
    lab = Lab(ROOT)
    figures = Figures(ROOT / "figures", lab.data_key)
    keys = {claim.number: figures.key(claim.path) for claim in claims}
    left = {
        f"claim_{claim.number}_seed_{seed}": claim
        for seed in seeds
        for claim in claims
        if figures.read(claim.number, seed, keys[claim.number]) is None
    }
    if not left:
        return set()
    say(f"{len(left)} measurements to do, {jobs} at a time; logs: {ROOT / 'jobs'}")
    warm_up()
    work = [
        (name, partial(_measure, claim, int(name.rsplit("_", 1)[1]), figures, keys[claim.number]))
        for name, claim in left.items()
    ]
    failed = set()
    for name, error in run_jobs(work, max(jobs, 1), ROOT / "jobs"):
        say(f"{name}: " + (f"failed: {error}" if error else "measured"))
        failed |= {left[name].number} if error else set()
    return failed


def _measure(claim: ClaimFile, seed: int, figures: Figures, key: str) -> None:
    measured = claim.measure(Lab(ROOT), seed)
    print(measured, flush=True)
    if not all(map(isfinite, (measured.ours, measured.baseline, measured.gain, *measured.details.values()))):
        raise DataError(f"a figure is not finite: {measured}")
    figures.write(claim.number, seed, key, measured)


def report(claims: Sequence[ClaimFile], seeds: int, say: Callable[[str], None]) -> None:
    """Put the rows of measured claims into the documents, and say them."""
    figures = Figures(ROOT / "figures", Lab(ROOT).data_key)
    rows = {}
    for claim in claims:
        key = figures.key(claim.path)
        measured = [one for seed in range(seeds) if (one := figures.read(claim.number, seed, key))]
        command = f"python -m bluelm_lightning.reproduce --claims {claim.number} --seeds {seeds}"
        row = rows[claim.number] = row_of(claim.claim, measured, command, code_key(claim.path))
        interval = f"{row['ours']:.3g} ({row['low']:.3g} to {row['high']:.3g}) {row['unit']}"
        say(f"{claim.number}. {row['claim']} {interval}: {'holds' if row['holds'] else 'does not hold'}")
    DOCS.mkdir(exist_ok=True)
    update(DOCS, rows, find_claims())


if __name__ == "__main__":
    sys.exit(main())
