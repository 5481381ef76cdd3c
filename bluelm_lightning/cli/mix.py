"""bluelm-mix: a mixture for a stage, proposed from small proxies of it.

bluelm-mix mix/sft.yaml
bluelm-fit --config tiny/sft.yaml --config runs/mix/mixture.yaml

Trains proxies of the stage over mixtures of its sources, fits how each held-out loss depends on the shares, and
proposes the mixture with the smallest weighted loss, with its uncertainty. Finished proxies are used again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit code 2 and one line on standard error when something is wrong."""
    parser = argparse.ArgumentParser("bluelm-mix", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="YAML; its keys: bluelm_lightning.mixing.plan.MixPlan")
    args = parser.parse_args(argv)
    try:
        _run(args.config)
    except (ValueError, OSError) as error:  # ConfigError and DataError are ValueErrors
        print(f"bluelm-mix: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bluelm-mix: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _run(config: str) -> None:
    from bluelm_lightning.cli.settings import read_settings
    from bluelm_lightning.mixing.plan import MixPlan
    from bluelm_lightning.mixing.run import run_mixing

    started = time.time()
    plan = read_settings(MixPlan, config, "mix/sft.yaml")
    report = run_mixing(plan, lambda text: print(f"[{time.time() - started:4.0f} s] {text}", flush=True))
    _print(report)
    print(f"mixture.json, mixture.yaml, mixture.png and the proxies are in {plan.out}")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"proposed shares of {report['unit']}")
    for column in ("source", "share", "95 % interval"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name, share in report["shares"].items():
        table.add_row(escape(name), f"{share['value']:.3f}", f"{share['low']:.3f} to {share['high']:.3f}")
    Console().print(table)
    gain, measured = report["predicted_gain_over_uniform"], report["measured"]
    print(f"weighted held-out loss of proxies: proposed {measured['proposed']:.4f}, uniform {measured['uniform']:.4f}")
    print(f"predicted gain over uniform: {gain['value']:.4f} nats ({gain['low']:.4f} to {gain['high']:.4f})")


if __name__ == "__main__":
    sys.exit(main())
