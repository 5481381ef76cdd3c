"""bluelm-data show: what shards hold, and what a stage makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` needs none of it
    from bluelm_lightning.inspection import Reading

_TEXT = """Show samples with their pictures, tiles and tokens, and what each source comes to.

bluelm-data show shards/llava --count 3
bluelm-data show shards/llava --config tiny/sft.yaml --html page.html
bluelm-data show shards/llava --run runs/sft --source easy_vqa --seed 7 --stats"""


def add(commands: Any) -> None:
    """Declare ``show`` among the commands of ``bluelm-data``."""
    options = {"description": _TEXT, "formatter_class": argparse.RawTextHelpFormatter}
    show = commands.add_parser("show", help="show samples, tokens, tiles, statistics", **options)
    show.add_argument("path", metavar="PATH", help="folder, .tar, glob or brace list")
    show.add_argument("--count", type=int, default=3, metavar="N", help="samples of each source to show (default 3)")
    show.add_argument("--source", metavar="NAME", help="samples of this source alone")
    show.add_argument("--html", metavar="PAGE.html", help="write one HTML page with pictures, tiles and statistics")
    show.add_argument("--stats", action="store_true", help="print statistics and histograms of each source")
    many = "most samples for the statistics, at even distances;\n0 = all (default 1000)"
    show.add_argument("--samples", type=int, default=1000, metavar="N", help=many)
    show.add_argument("--seed", type=int, metavar="S", help="draw the samples at random instead")
    one = show.add_mutually_exclusive_group()
    one.add_argument("--tokenizer", metavar="PATH", help="show tokens and the loss mask")
    one.add_argument("--config", metavar="STAGE.yaml", help="take tokenizer, tiles and mode from a stage")
    one.add_argument("--run", dest="run_folder", metavar="RUN", help="take them from the folder of a run")
    tiles = show.add_argument_group("tiles, where no stage says it (defaults: the report's)")
    tiles.add_argument("--tile-size", type=int, default=378, metavar="PX")
    tiles.add_argument("--tokens-per-tile", type=int, default=196, metavar="Q")
    tiles.add_argument("--max-grid", type=int, default=4, metavar="G", help="at most G x G tiles")
    tiles.add_argument("--no-thumbnail", action="store_true", help="no tile with the whole picture")
    show.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> None:
    from rich.console import Console

    from bluelm_lightning.inspection import ShardFolder, collect
    from bluelm_lightning.inspection.collect import Choice
    from bluelm_lightning.inspection.page import render_page
    from bluelm_lightning.inspection.terminal import print_inspection

    choice = Choice(args.count, args.samples or None, args.seed, args.source, args.stats or args.html is not None)
    console = Console(highlight=False, soft_wrap=True)
    found = collect(ShardFolder(args.path), _reading(args), choice, _progress if choice.statistics else iter)
    if args.html is None:
        print_inspection(found, console)
        return
    page = Path(args.html)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_page(found), encoding="utf-8")
    console.print(f"{page}: {len(found.views)} samples", markup=False)
    if args.stats:
        found.views.clear()  # they are on the page
        print_inspection(found, console)


def _progress(numbers: Iterable[int]) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(numbers, "reading", console=console, transient=True, disable=not console.is_terminal)


def _reading(args: argparse.Namespace) -> Reading:
    from bluelm_lightning.data.encode import Encoder
    from bluelm_lightning.data.tokenizer import load_tokenizer
    from bluelm_lightning.inspection import Reading
    from bluelm_lightning.inspection.pictures import Tiling
    from bluelm_lightning.types import ImageSpec

    if args.config or args.run_folder:
        from bluelm_lightning.cli.data_show_stage import reading_of_stage

        return reading_of_stage(args.config or args.run_folder, bool(args.run_folder), args.path)
    tiling = Tiling(args.tile_size, args.max_grid, not args.no_thumbnail)
    if args.tokenizer is None:
        return Reading(tiling=tiling)
    spec = ImageSpec(args.tile_size, args.tokens_per_tile)
    return Reading(Encoder(load_tokenizer(args.tokenizer), spec, tiling.max_grid, tiling.thumbnail))
