"""bluelm-data synthesize: traces sampled from an engine, and SFT shards of those that prove right."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Declare ``synthesize`` among the commands of ``bluelm-data``."""
    text = "sample questions many times, keep the answers that prove right, write SFT shards"
    synthesize = commands.add_parser("synthesize", help=text, description=text)
    synthesize.add_argument("config", metavar="CONFIG", help="YAML; its keys: synthesis.plan.SynthesisPlan")
    synthesize.set_defaults(run=_synthesize)


def _synthesize(args: argparse.Namespace) -> None:
    from bluelm_lightning import synthesis  # noqa: F401 - short class names are looked up among what is imported
    from bluelm_lightning.cli.settings import read_settings
    from bluelm_lightning.synthesis.plan import SynthesisPlan
    from bluelm_lightning.synthesis.run import NothingKept, print_report, synthesize

    plan = read_settings(SynthesisPlan, args.config, "data/synthesize.yaml")
    try:
        report = synthesize(plan, lambda text: print(text, flush=True))
    except NothingKept as error:
        print_report(error.report)
        raise
    print_report(report)
    print(f"shards and report.json are in {plan.out}")
