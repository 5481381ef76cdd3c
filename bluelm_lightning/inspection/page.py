"""An inspection as one HTML file that needs nothing else and can fetch nothing.

Everything that comes from data is escaped, and the page's policy lets only its own script run.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from itertools import count

from bluelm_lightning.data.chat import IMAGE
from bluelm_lightning.inspection.collect import Inspection
from bluelm_lightning.inspection.page_drawing import bars, figure
from bluelm_lightning.inspection.page_style import SCRIPT, STYLE
from bluelm_lightning.inspection.statistics import SourceStatistics
from bluelm_lightning.inspection.tokens import DocumentView, TokenView
from bluelm_lightning.inspection.views import SampleView, TurnView
from bluelm_lightning.inspection.words import (
    NO_TOKENIZER,
    document_words,
    extra_words,
    fact_words,
    measures_of,
    problem_words,
    total_words,
    visible,
)

_MOST_TOKENS = 4000  # spans of one document; a browser grows slow with more
_LONG = 40  # characters of a fact that gets a line of its own
_ALLOWED = b64encode(sha256(SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_ALLOWED}'"
_KEY = {
    "learnt": "labelled, learnt",
    "plain": "not labelled",
    "special": "special token",
    "image": "image tokens",
}


def render_page(found: Inspection) -> str:
    """The page: totals, problems, a button for each source, statistics, samples."""
    title = visible(found.folder.path.rstrip("/").rsplit("/", 1)[-1])
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_safe(title)}</title><style>{STYLE}</style></head>\n<body><main>\n'
    )
    return "".join([head, *_top(found, title), *_sources(found), *_samples(found), f"</main><script>{SCRIPT}</script>"])


def _safe(text: str) -> str:
    return escape(visible(text))


def _top(found: Inspection, title: str) -> Iterator[str]:
    yield f'<h1>{_safe(title)}</h1><p class="quiet">{_safe(found.folder.path)}: {total_words(found)}</p>\n'
    problems = problem_words(found)
    if problems:
        yield f'<div class="warn"><ul>{"".join(f"<li>{_safe(line)}</li>" for line in problems)}</ul></div>\n'
    notes = found.reading.notes + ([NO_TOKENIZER] if found.reading.encoder is None else [])
    yield "".join(f'<p class="quiet">{_safe(note)}</p>' for note in notes)
    buttons = [f'<button value="{_safe(name)}">{_name(name)}</button>' for name in sorted(found.statistics)]
    choice = ['<button value="">all sources</button>', *buttons] if len(buttons) > 1 else []
    yield f"<nav>{''.join(choice)}<output></output></nav>\n"


def _name(source: str) -> str:
    return _safe(source) or "(no name)"


def _sources(found: Inspection) -> Iterator[str]:
    yield f'<h2>Sources</h2><p class="quiet">Counted: {_safe(found.counted)}.</p>\n'
    for name, one in sorted(found.statistics.items()):
        yield f'<section class="card" data-source="{_safe(name)}"><h3>{_name(name)}</h3>{_facts(fact_words(one))}'
        yield f'<div class="bars">{"".join(_histograms(one))}</div></section>\n'


def _histograms(one: SourceStatistics) -> Iterator[str]:
    for measure in measures_of(one):
        yield bars(measure, one)


def _facts(facts: dict[str, str]) -> str:
    def item(name: str, words: str) -> str:
        kind = ' class="long"' if len(words) > _LONG else ""
        return f"<div{kind}><dt>{_safe(name)}</dt><dd>{_safe(words)}</dd></div>"

    return f'<dl class="facts">{"".join(item(*fact) for fact in facts.items())}</dl>'


def _samples(found: Inspection) -> Iterator[str]:
    yield "<h2>Samples</h2>\n"
    if any(view.documents for view in found.views):
        yield f'<p class="key">{"".join(f"<span class={k}>{words}</span>" for k, words in _KEY.items())}</p>\n'
    for view in found.views:
        yield f'<article class="card" data-source="{_safe(view.source)}">{"".join(_sample(view))}</article>\n'


def _sample(view: SampleView) -> Iterator[str]:
    about = [view.task, view.mode.replace("_", "-"), view.where]
    words = "".join(f'<span class="quiet">{_safe(word)}</span>' for word in about if word)
    yield f'<div class="head"><h3>{_safe(view.id)}</h3><span class="chip">{_name(view.source)}</span>{words}</div>'
    if view.problem:
        yield f'<p class="warn">Training would leave it out: {_safe(view.problem)}</p>'
    if view.note:
        yield f'<p class="warn">Longer than a row: {_safe(view.note)}</p>'
    drawn = [figure(n, picture, data) for n, (picture, data) in enumerate(zip(view.pictures, view.images))]
    pictures = f'<div class="pictures">{"".join(drawn)}</div>' if drawn else ""
    places = count()
    turns = "".join(_turn(turn, places) for turn in view.turns)
    documents = "".join(map(_document, view.documents))
    extra = extra_words(view)
    facts = _facts(extra) if extra else ""
    yield f'<div class="body">{pictures}<div class="text">{turns}{documents}{facts}</div></div>'


def _turn(turn: TurnView, places: count[int]) -> str:
    thought = f'<div class="thought">{_safe(turn.thinking)}</div>' if turn.thinking else ""
    said = _safe(turn.text)
    if turn.role in ("system", "user", "text"):  # elsewhere a placeholder is plain text
        first, *others = said.split(escape(IMAGE))
        said = first + "".join(f'<span class="chip">picture {next(places)}</span>{other}' for other in others)
    text = f'{thought}<div class="said">{said}</div>'
    return f'<div class="turn"><div class="role">{turn.role}</div><div>{text}</div></div>'


def _document(view: DocumentView) -> str:
    title = "" if view.title == "sample" else f"{view.title}: "
    spans = "".join(map(_token, view.tokens[:_MOST_TOKENS]))
    if len(view.tokens) > _MOST_TOKENS:
        spans += f"\n... and {sum(len(token.ids) for token in view.tokens[_MOST_TOKENS:]):,} tokens more"
    summary = f"<summary>{title}{document_words(view)}</summary>"
    return f'<details open>{summary}<div class="tokens">{spans}</div></details>'


def _token(token: TokenView) -> str:
    if token.kind == "image":
        return f'<span class="image">image&nbsp;x&nbsp;{len(token.ids):,}</span>'
    kind = [token.kind] * (token.kind == "special") + ["learnt" if token.labelled else "plain"]
    if kind == ["special", "plain"]:
        kind = ["special"]
    text = _safe(token.text).replace("\n", "\u21b5\n")
    return f'<span class="{" ".join(kind)}" title="{" ".join(map(str, token.ids))}">{text}</span>'
