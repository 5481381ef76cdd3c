"""The pictures of the page: tiles drawn on a picture, and histograms, both as inline SVG."""

from __future__ import annotations

from base64 import b64encode
from html import escape

from bluelm_lightning.data.tiling import PAD_VALUE
from bluelm_lightning.errors import DataError
from bluelm_lightning.inspection.pictures import PictureView, Rect, embedded
from bluelm_lightning.inspection.statistics import SourceStatistics
from bluelm_lightning.inspection.words import picture_words, range_words, visible

_SIDE = 340  # px of the page that the longer side of a canvas takes at most
_ENLARGED = 200  # px that a smaller canvas takes
_HEIGHT = 50  # of a histogram, in its own units; its width is 100


def figure(number: int, view: PictureView, data: bytes) -> str:
    """A picture on its canvas with its tiles, and what it is. One that cannot be drawn is a sentence."""
    words = f"picture {number}: {picture_words(view)}"
    try:
        kind, small = embedded(data)
    except DataError as error:
        words = f"{words}; {error.reason}" if not view.problem else words
        return f'<figure class="warn">{escape(visible(words))}</figure>'
    if view.thumbnail:
        words += " (tile 0, the whole picture)"
    caption = f"<figcaption>{escape(words)}</figcaption>"
    return f"<figure>{_tiled(view, f'data:{kind};base64,{b64encode(small).decode()}')}{caption}</figure>"


def _tiled(view: PictureView, address: str) -> str:
    """SVG in the picture's own pixels: padding, picture, cuts, and each tile's number among its tiles."""
    canvas, longer = view.canvas, max(view.canvas.width, view.canvas.height)
    shown = max(_ENLARGED, min(_SIDE, longer))  # px of the longer side
    unit = longer / shown  # picture pixels in a px of the page
    size = f'width="{canvas.width / unit:.0f}" height="{canvas.height / unit:.0f}"'
    box = " ".join(f"{value:.6g}" for value in canvas)
    small = ' class="small"' if max(view.width, view.height) < _ENLARGED else ""
    out = [f'<svg{small} viewBox="{box}" {size} role="img" aria-label="{view.num_tiles} tiles">']
    out.append(f'<rect {_box(canvas)} fill="rgb({PAD_VALUE} {PAD_VALUE} {PAD_VALUE})"/>')
    picture = f'width="{view.width}" height="{view.height}" preserveAspectRatio="none"'
    out.append(f'<image x="0" y="0" {picture} href="{address}"/>')
    out += [f'<rect class="under" {_box(tile)}/>' for tile in view.tiles]
    for number, tile in enumerate(view.tiles, start=int(view.thumbnail)):
        place = f'x="{tile.x + 4 * unit:.6g}" y="{tile.y + 14 * unit:.6g}"'
        text = f'font-size="{12 * unit:.4g}" stroke-width="{3 * unit:.4g}"'
        label = f'<text class="number" {place} {text}>{number}</text>' if view.num_tiles > 1 else ""
        out.append(f'<rect class="tile" {_box(tile)}><title>tile {number}</title></rect>{label}')
    return "".join(out) + "</svg>"


def _box(rect: Rect) -> str:
    x, y, width, height = (f"{value:.8g}" for value in rect)
    return f'x="{x}" y="{y}" width="{width}" height="{height}"'


def bars(measure: str, one: SourceStatistics) -> str:
    """A histogram of one measure over the samples of a source, with its sum."""
    histogram = one.histogram(measure)
    most, step = max(bar.samples for bar in histogram), 100 / len(histogram)
    wide = min(step * 0.9, 12)  # one value is a bar, not a wall
    out = []
    for place, bar in enumerate(histogram):
        height = max(1.0, bar.samples / most * (_HEIGHT - 2)) if bar.samples else 0
        values = f"{bar.low:,}" if bar.low == bar.high else f"{bar.low:,} to {bar.high:,}"
        size = f'x="{(place + 0.5) * step - wide / 2:.2f}" width="{wide:.2f}"'
        box = f'{size} y="{_HEIGHT - height:.2f}" height="{height:.2f}"'
        out.append(f"<rect {box}><title>{values}: {bar.samples:,} samples</title></rect>")
    ends = "".join(f"<span>{words}</span>" for words in range_words(one, measure))
    return (
        f"<figure><figcaption><b>{escape(measure)}</b><span>{one.total(measure):,}</span></figcaption>"
        f'<svg viewBox="0 0 100 {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(measure)}">'
        f'{"".join(out)}<line x1="0" x2="100" y1="{_HEIGHT}" y2="{_HEIGHT}"/></svg>'
        f"<figcaption>{ends}</figcaption></figure>"
    )
