"""bluelm-prune: a smaller decoder out of a run's, by what its parts do on the run's own data.

bluelm-prune runs/teacher --out decoders/student --parameters 2500000000 --depth 0.2
bluelm-prune runs/teacher --out decoders/student --parameters 0.5
bluelm-prune runs/teacher --out decoders/student --layers 24 --width 2048 --groups 0.5 --neurons 0.4

Sizes below 1 are shares of the teacher's.

OUT is an ordinary folder of transformers: name it as ``checkpoint`` of a CausalDecoder. ``pruning.json`` in it says
what went. What low-rank adapters of the run have learned goes into its weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit code 2 and one line on standard error when something is wrong."""
    args = _parser().parse_args(argv)
    try:
        print(run(args))
    except (ValueError, OSError) as error:  # ConfigError and DataError are ValueErrors
        print(f"bluelm-prune: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bluelm-prune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder that bluelm-fit wrote")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for the smaller decoder")
    parser.add_argument("--parameters", type=float, metavar="N", help="most parameters that may stay: 2.5e9, or 0.5")
    parser.add_argument(
        "--depth", type=float, default=0.0, help="share of the reduction by dropping layers (default 0)"
    )
    for name, what in (("layers", "layers"), ("width", "width of the states"), ("groups", "key-value heads")):
        parser.add_argument(f"--{name}", type=float, metavar="N", help=f"{what} that stay")
    parser.add_argument("--neurons", type=float, metavar="N", help="neurons of each MLP that stay")
    parser.add_argument("--importance", default="activation", choices=("activation", "magnitude"))
    parser.add_argument("--batches", type=int, default=16, metavar="N", help="of the run's data, to calibrate on")
    return parser


def run(args: argparse.Namespace) -> Any:
    """Does what the command line says; returns the report."""
    from bluelm_lightning.cli.given import at_least, folder_at
    from bluelm_lightning.cli.load import load_run
    from bluelm_lightning.components.adapters import absorb
    from bluelm_lightning.components.pruning import (
        activation_importance,
        magnitude_importance,
        plan_for,
        plan_of,
        prune,
    )
    from bluelm_lightning.errors import ConfigError

    sizes = (args.layers, args.width, args.groups, args.neurons)
    if (args.parameters is None) == all(size is None for size in sizes):
        raise ConfigError("give either --parameters, or some of --layers, --width, --groups and --neurons", "pruning")
    at_least(1, args.batches, "--batches")
    out = folder_at(args.out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{args.out} is not empty; give another folder", "out")
    stage, data = load_run(args.run)
    decoder: Any = stage.vlm.decoder
    absorb(decoder)
    config = decoder.model.config
    plan = plan_of(config, sizes) if args.parameters is None else plan_for(config, args.parameters, args.depth)
    if args.importance == "magnitude":
        importance = magnitude_importance(decoder)
    else:
        batches = islice(data.calibration(), args.batches)
        importance = activation_importance(stage.vlm, batches)
    small, report = prune(decoder.model, plan, importance)
    small.save_pretrained(args.out)  # type: ignore[operator]
    told = {**asdict(report), "run": str(args.run), "importance": args.importance}
    (out / "pruning.json").write_text(json.dumps(told, indent=1) + "\n")
    return report


if __name__ == "__main__":
    sys.exit(main())
