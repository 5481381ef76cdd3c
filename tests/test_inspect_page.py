"""The page of an inspection: tiles where tiling cuts, nothing of the data is markup, and it works in a browser."""

import io
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from browser import Browser
from cli_project import stage, write_project
from PIL import Image
from test_inspection import preference, thinking, waiting, wide, write
from tiny import TILE, png, question, tiny_encoder

from bluelm_lightning.cli.data import main
from bluelm_lightning.data.images import decode_image
from bluelm_lightning.data.tiling import PAD_VALUE, tile_image
from bluelm_lightning.inspection import Reading, ShardFolder, collect
from bluelm_lightning.inspection.collect import Choice
from bluelm_lightning.inspection.page import render_page
from bluelm_lightning.inspection.page_drawing import bars, figure
from bluelm_lightning.inspection.pictures import Tiling, view_picture
from bluelm_lightning.inspection.statistics import SourceStatistics
from bluelm_lightning.types import Sample

ENCODER = tiny_encoder(max_grid=2, thumbnail=True)


def photo(width: int, height: int) -> bytes:
    """A smooth picture with something everywhere."""
    rows, cols = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(cols / (3 + n) + n) * np.cos(rows / (4 - n)) for n in range(3)]
    out = io.BytesIO()
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


class Elements(HTMLParser):
    """Start tags with their attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def all(self, tag, kind=None):
        return [attrs for name, attrs in self.found if name == tag and kind in (None, attrs.get("class"))]


# ---------------------------------------------------------------- tiles
@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (40, 20), (17, 64), (100, 33), (7, 90), (61, 47), (300, 5)])
def test_what_lies_under_a_drawn_rectangle_is_the_tile(size, thumbnail):
    data, tiling = photo(*size), Tiling(TILE, 4, thumbnail)
    tiles = tile_image(decode_image(data), TILE, 4, thumbnail)
    page = Elements(figure(0, view_picture(data, tiling), data))
    drawn = [[float(rect[key]) for key in ("x", "y", "width", "height")] for rect in page.all("rect", "tile")]
    assert len(drawn) == len(tiles) - (thumbnail and len(tiles) > 1)
    picture = Image.open(io.BytesIO(data))
    for (x, y, width, height), tile in zip(drawn, tiles[-len(drawn) :]):
        box = (max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1]))
        left, right = (round((edge - x) / width * TILE) for edge in (box[0], box[2]))
        top, bottom = (round((edge - y) / height * TILE) for edge in (box[1], box[3]))
        cut = picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box)
        seen = torch.full_like(tile, PAD_VALUE)
        seen[:, top:bottom, left:right] = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
        assert int((seen.int() - tile.int()).abs().max()) <= 3


def test_a_picture_is_drawn_on_its_canvas_in_its_own_pixels():
    data = photo(40, 20)
    page = Elements(figure(2, view_picture(data, Tiling(TILE, 4)), data))
    [image], [svg] = page.all("image"), page.all("svg")
    assert (image["x"], image["y"], image["width"], image["height"]) == ("0", "0", "40", "20")
    left, top, width, height = map(float, svg["viewbox"].split())
    assert (left, width) == (0, 40)
    assert -top == pytest.approx(top + height - 20, abs=1e-3)  # padded as much above as below
    assert top < 0
    assert "picture 2: 40 x 20 PNG" in page.words


def test_a_broken_picture_is_a_sentence():
    broken = figure(0, view_picture(png()[:60], Tiling()), png()[:60])
    assert "truncated or damaged" in broken
    assert "<svg" not in broken
    assert "is no picture in PNG" in figure(0, view_picture(b"x", Tiling()), b"x")


def test_a_histogram_of_one_value_is_one_bar():
    page = Elements(bars("turns", SourceStatistics(values={"turns": Counter({2: 5})})))
    [bar] = page.all("rect")
    assert float(bar["x"]) > 30
    assert float(bar["width"]) < 40
    assert page.words == "turns102: 5 samplesall 2"


# ---------------------------------------------------------------- the page as text
def test_nothing_of_the_data_is_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    sample = question(evil, evil, images=1, id=evil, source=evil, task=evil, meta={evil: evil, "n": [evil]})
    sample.answer = sample.messages[-1]["thinking"] = evil
    pair = preference(meta={"chosen": evil, "rejected": evil})
    page = render_page(collect(ShardFolder(write(tmp_path / "s", [sample, pair])), Reading(ENCODER), Choice()))
    parsed = Elements(page)
    assert len(parsed.all("script")) == 1
    assert not parsed.all("img")
    assert not [attrs for _, attrs in parsed.found if any(name.startswith("on") for name in attrs)]
    assert page.count("alert(1)") >= 10
    policy = parsed.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://|//[a-z]", page)


def test_tokens_carry_their_class(tmp_path):
    page = render_page(collect(ShardFolder(write(tmp_path / "s", [thinking()])), Reading(ENCODER), Choice()))
    assert re.search(
        r'<span class="special learnt" title="\d+">&lt;think&gt;</span><span class="learnt" title="\d+">4<', page
    )
    assert '<span class="image">image&nbsp;x&nbsp;4</span>' in page
    assert re.search(r'<span class="special" title="\d+">\[\|AI\|\]:</span>', page)
    assert re.search(r'<span class="plain" title="\d+">↵\n</span>', page)


def test_the_command_writes_a_page_and_takes_a_stage(tmp_path, capsys):
    project = write_project(tmp_path)
    shards, page = str(project / "shards/a"), tmp_path / "out/page.html"
    assert main(["show", shards, "--tokenizer", str(project / "tokenizer"), "--tile-size", "16", "--stats"]) == 0
    out = capsys.readouterr().out
    assert "<image x 196>" in out
    assert "statistics of all 24 samples" in out
    run = project / "run"
    run.mkdir()
    settings = stage(project)
    settings["data"]["init_args"]["sources"][0]["thinking_share"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["show", shards, "--run", str(run), "--html", str(page), "--count", "2"]) == 0
    assert capsys.readouterr().out == f"{page}: 2 samples\n"
    text = page.read_text(encoding="utf-8")
    assert f"read as {run} reads it (SFTStage, SFTDataModule)" in text
    assert "keeps the traces in 50% of the passes" in text
    assert "image&nbsp;x&nbsp;4<" in text
    assert main(["show", shards, "--run", str(project)]) == 2
    assert "holds no config.yaml; give a folder that bluelm-fit wrote" in capsys.readouterr().err


# ---------------------------------------------------------------- the page in a browser
@pytest.fixture(scope="module")
def browser():
    if shutil.which("chromium") is None:
        pytest.fail("needs chromium: apt-get install chromium")
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    long = question("W" * 400 + " https://x.y/" + "z" * 300, "v" * 500, id="i" * 200, source="other", task="t" * 90)
    photos = Sample(id="g", source="other", text="<image>" * 3, images=[photo(300, 40), photo(20, 300), photo(64, 64)])
    bad = question(id="bad", source="tiny", images=1)
    bad.images = [png()[:60]]
    samples = [thinking(), long, photos, preference(), waiting(), wide(), bad]
    found = collect(ShardFolder(write(folder / "s", samples)), Reading(ENCODER), Choice(count=5))
    (folder / "page.html").write_text(render_page(found), encoding="utf-8")
    return (folder / "page.html").as_uri()


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_scrolls_sideways(browser, page, width):
    browser.open(page, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelectorAll('svg image').length") == 6
    outside = (
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert browser.value(outside) == 0
    assert browser.errors == []


@pytest.mark.slow
def test_a_source_is_chosen_by_its_button_and_by_the_address(browser, page):
    shown = "[...document.querySelectorAll('article')].filter(e => e.offsetHeight > 0).map(e => e.dataset.source)"
    browser.open(page)
    assert len(browser.value(shown)) == 7
    browser.value("document.querySelector('nav button[value=other]').click()")
    assert browser.value(shown) == ["other", "other"]
    assert browser.value("document.querySelector('nav output').textContent") == "2 samples shown"
    assert browser.value("document.querySelector('nav button[aria-pressed=true]').value") == "other"
    browser.value("document.querySelector('nav button').click()")
    assert len(browser.value(shown)) == 7
    browser.open(page + "#source=pairs")
    assert browser.value(shown) == ["pairs"]
    assert browser.errors == []


@pytest.mark.slow
def test_text_can_be_read_in_light_and_dark(browser, page):
    """Contrast of every kind of text on its own ground is at least 4.5, as WCAG AA asks for."""
    contrast = """(() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
      const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(c)) return c } return 'rgb(255, 255, 255)' };
      const kinds = '.plain, .learnt, .special, .image, .quiet, .chip, .warn, dt, dd, .thought, button';
      return Math.min(...[...document.querySelectorAll(kinds)].map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) }))
    })()"""
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        assert browser.value(contrast) >= 4.5
