"""bluelm-data show: what shards hold."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` needs none of it
    from bluelm_lightning.types import Sample


def add(commands: Any) -> None:
    """Declare ``show`` among the commands of ``bluelm-data``."""
    show = commands.add_parser("show", help="print samples, and how many each source has")
    show.add_argument("path", metavar="PATH", help="folder, .tar, glob or brace list")
    show.add_argument("--count", type=int, default=3, metavar="N", help="samples to print (default 3)")
    show.set_defaults(run=_show)


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
