"""One HTML page of what the model wrote, with the pictures in it. Pure functions."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from html import escape
from itertools import groupby
from typing import Any

# Generated text is not trusted: escaped, and the browser may run and fetch nothing.
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }}
article {{ border-top: 1px solid #ccc; padding: 1rem 0 }}
img {{ max-width: 24rem; max-height: 18rem; margin-right: .5rem; border: 1px solid #ddd }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font: 14px/1.4 ui-monospace, monospace }}
dt {{ color: #666; font-size: 13px; margin-top: .6rem }} dd {{ margin: 0 }} .thinking {{ color: #777 }}
</style></head><body><h1>{title}</h1>
"""


@dataclass
class SampleRow:
    """One prompt in one mode with what the model made of it."""

    step: int
    id: str
    source: str
    task: str
    mode: str  # "thinking" | "non_thinking"
    prompt: str
    reference: str
    answer: str | None  # None: cut before an answer
    thinking: str | None
    text: str  # all of it, as generated
    num_tokens: int
    finished: bool
    images: list[bytes] = field(default_factory=list, repr=False)  # JPEG

    def record(self) -> dict[str, Any]:
        """What fits a line of JSON: all but the pictures, of which the number."""
        return {**asdict(self), "images": len(self.images)}


def render(rows: list[SampleRow], title: str) -> str:
    """The page: for each sample its pictures and prompt once, then an answer for each mode."""
    out = [_HEAD.format(title=escape(title))]
    for _, group in groupby(sorted(rows, key=lambda row: (row.source, row.id)), key=lambda row: (row.source, row.id)):
        out.append(_article(list(group)))
    return "".join(out) + "</body></html>\n"


def _article(rows: list[SampleRow]) -> str:
    first = rows[0]
    pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{_base64(data)}">' for data in first.images)
    items = [("prompt", _pre(first.prompt)), ("reference", _pre(first.reference))]
    for row in rows:
        cut = "" if row.finished else ", cut at the limit"
        thinking = _pre(row.thinking, "thinking") if row.thinking is not None else ""
        answer = _pre(row.text if row.answer is None else row.answer)
        items.append((f"{row.mode}: {row.num_tokens} tokens{cut}", thinking + answer))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{body}</dd>" for name, body in items)
    heading = escape(" ".join(part for part in (first.source, first.id, first.task) if part))
    return f"<article><h3>{heading}</h3>{pictures}<dl>{listed}</dl></article>\n"


def _pre(text: str, kind: str = "text") -> str:
    return f'<pre class="{kind}">{escape(text)}</pre>'


def _base64(data: bytes) -> str:
    from base64 import b64encode

    return b64encode(data).decode("ascii")


def thumbnail(data: bytes, side: int = 512) -> bytes:
    """Encoded picture -> JPEG that fits ``side x side`` pixels."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as picture:
        small = ImageOps.exif_transpose(picture).convert("RGBA")
    small.thumbnail((side, side))
    small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    out = io.BytesIO()
    small.save(out, "JPEG", quality=90)
    return out.getvalue()


def strip(pictures: list[bytes]) -> Any:
    """JPEGs side by side as one PIL image; ``None`` without pictures."""
    from PIL import Image

    opened = [Image.open(io.BytesIO(data)) for data in pictures]
    if not opened:
        return None
    joined = Image.new("RGB", (sum(p.width for p in opened), max(p.height for p in opened)), "white")
    left = 0
    for picture in opened:
        joined.paste(picture, (left, 0))
        left += picture.width
    return joined
