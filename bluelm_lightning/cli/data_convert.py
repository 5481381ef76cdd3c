"""bluelm-data convert: tar shards from records, tables and folders of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` needs none of it
    from bluelm_lightning.types import Sample


def add(commands: Any) -> None:
    """Declare ``convert`` among the commands of ``bluelm-data``."""
    convert = commands.add_parser("convert", help="write tar shards")
    forms = convert.add_subparsers(required=True, metavar="{jsonl,parquet,images}")
    jsonl = _form(forms, "jsonl", _jsonl, "records, one a line or one JSON list: ours, OpenAI chat, ShareGPT, LLaVA")
    parquet = _form(forms, "parquet", _parquet, "parquet files or a saved Hugging Face data set")
    images = _form(forms, "images", _images, "a folder of pictures with captions")
    for form in (jsonl, parquet):
        form.add_argument("--image-root", help="where relative paths of pictures begin (default: beside IN)")
    for column in ("question", "answer", "thinking", "text", "images"):
        parquet.add_argument(f"--{column}", metavar="COLUMN", help=f"column of the {column}")
    parquet.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help="columns to leave out")
    images.add_argument("--caption", default="filename", choices=("filename", "folder", "txt", "jsonl"))


def _form(forms: Any, name: str, read: Any, text: str) -> argparse.ArgumentParser:
    form = forms.add_parser(name, help=text, description=text)
    form.add_argument("input", metavar="IN")
    form.add_argument("output", metavar="OUT", help="folder for the shards")
    form.add_argument("--source", help="name for all samples (default: their own, else the name of IN)")
    form.add_argument("--samples-per-shard", type=int, default=1000, metavar="N")
    form.add_argument("--overwrite", action="store_true", help="replace shards that bluelm-data wrote to OUT")
    form.add_argument("--on-error", default="report", choices=("report", "raise"), help="bad records: count, or stop")
    form.set_defaults(run=_convert, read=read)
    return form


def _jsonl(args: argparse.Namespace) -> Iterator[Sample]:
    from bluelm_lightning.data.convert import from_jsonl

    return from_jsonl(args.input, args.image_root, args.source)


def _parquet(args: argparse.Namespace) -> Iterator[Sample]:
    from bluelm_lightning.data.convert import from_dataset

    names = ("question", "answer", "thinking", "text", "images", "image_root", "source", "drop")
    return from_dataset(args.input, **{name: getattr(args, name) for name in names})


def _images(args: argparse.Namespace) -> Iterator[Sample]:
    from bluelm_lightning.data.convert import from_image_folder

    return from_image_folder(args.input, args.caption, args.source)


def _convert(args: argparse.Namespace) -> None:
    from bluelm_lightning.data.convert import write_shards

    options = {"samples_per_shard": args.samples_per_shard, "overwrite": args.overwrite}
    report = write_shards(args.read(args), args.output, args.on_error, **options)
    print(f"{report['written']} of {report['in']} records written to {args.output}")
    for reason, count in report["dropped"].items():
        print(f"  dropped {count}: {reason}")
    for record in report["dropped_records"][:5]:
        print(f"    {record}")
