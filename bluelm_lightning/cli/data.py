"""bluelm-data: write shards from what you have, clean them, make more, and look into them.

bluelm-data convert jsonl llava.json shards/llava --image-root coco
bluelm-data convert parquet scienceqa/ shards/scienceqa --question question --answer answer --images image
bluelm-data convert images pictures/ shards/pictures --caption folder
bluelm-data run data/curate.yaml --output curated
bluelm-data show shards/llava --count 3
bluelm-data synthesize data/synthesize.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bluelm_lightning.cli import data_convert, data_run, data_show, data_synthesize

# Each adds one command: `add(commands)` declares it and sets `run`, which is given the parsed arguments.
COMMANDS = (data_convert, data_run, data_show, data_synthesize)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit code 2 and one line on standard error when something is wrong."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:  # ConfigError and DataError are ValueErrors
        print(f"bluelm-data: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bluelm-data: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bluelm-data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
