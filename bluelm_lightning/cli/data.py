"""bluelm-data: write shards from what you have, and look into them.

bluelm-data convert jsonl llava.json shards/llava --image-root coco
bluelm-data convert parquet scienceqa/ shards/scienceqa --question question --answer answer --images image
bluelm-data convert images pictures/ shards/pictures --caption folder
bluelm-data show shards/llava --count 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` needs none of it
    from bluelm_lightning.types import Sample


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
    commands = parser.add_subparsers(required=True, metavar="{convert,show}")
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
    show = commands.add_parser("show", help="print samples, and how many each source has")
    show.add_argument("path", metavar="PATH", help="folder, .tar, glob or brace list")
    show.add_argument("--count", type=int, default=3, metavar="N", help="samples to print (default 3)")
    show.set_defaults(run=_show)
    return parser


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


def _show(args: argparse.Namespace) -> None:
    from collections import Counter

    from bluelm_lightning.data.shards import ShardSource

    source = ShardSource(args.path)
    for index in range(min(args.count, len(source))):
        _print_sample(source[index])
    manifest = source.manifest()
    counts = manifest.get("sources") or Counter(source[index].source for index in range(len(source)))
    print(f"{len(source)} samples in {len(source.block_sizes)} shards, {manifest['bytes'] / 1e6:.1f} MB")
    for name, count in sorted(counts.items()):
        print(f"  {name or '(no name)'}: {count}")


def _print_sample(sample: Sample) -> None:
    task = f"  task {sample.task}" if sample.task else ""
    print(f"{sample.id}  source {sample.source}{task}  images {', '.join(map(_size, sample.images)) or 'none'}")
    turns = sample.messages or [{"role": "text", "content": sample.text or ""}]
    for turn in turns:
        if turn.get("thinking"):
            print(f"  {turn['role']} thinks: {turn['thinking']}")
        print(f"  {turn['role']}: {turn['content']}")
    if sample.answer is not None:
        print(f"  answer: {sample.answer}")
    print()


def _size(image: bytes) -> str:
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(image)) as opened:
        return f"{opened.width} x {opened.height}"


if __name__ == "__main__":
    sys.exit(main())
