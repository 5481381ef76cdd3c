"""An inspection in the terminal. Colours only where there is one; elsewhere labelled tokens stand between « and »."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from bluelm_lightning.inspection.collect import Inspection
from bluelm_lightning.inspection.statistics import SourceStatistics
from bluelm_lightning.inspection.tokens import DocumentView, TokenView
from bluelm_lightning.inspection.views import SampleView
from bluelm_lightning.inspection.words import (
    NO_TOKENIZER,
    document_words,
    extra_words,
    fact_words,
    measures_of,
    picture_words,
    problem_words,
    range_words,
    total_words,
    visible,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {"text": "dim", "special": "magenta", "image": "cyan"}
_BLOCKS = " ▁▂▃▄▅▆▇█"


def print_inspection(found: Inspection, console: Console) -> None:
    """Samples, then what there is of each source, then what is wrong."""
    from rich.text import Text

    for view in found.views:
        console.print(Text("\n").join(_sample(view, console.is_terminal)), end="\n\n")
    console.print(Text(total_words(found)))
    if found.choice.statistics:
        console.print(Text(f"statistics of {found.counted}"))
        for name, one in sorted(found.statistics.items()):
            console.print(Text("\n").join(_source(name, one)))
    else:
        held = {name: count for name, count in found.folder.sources.items() if found.choice.source in (None, name)}
        if not held:
            console.print(Text(f"sources of {found.counted}"))
            held = {name: one.samples for name, one in found.statistics.items()}
        for name, count in sorted(held.items()):
            console.print(Text(f"  {visible(name) or '(no name)'}: {count:,}"))
    for line in [*problem_words(found), *found.reading.notes]:
        console.print(Text(visible(line), "yellow"))
    if found.reading.encoder is None and found.views:
        console.print(Text(NO_TOKENIZER, "dim"))


def _sample(view: SampleView, colour: bool) -> Iterator[Text]:
    from rich.text import Text

    about = {"source": view.source, "task": view.task, "mode": view.mode}
    head = "".join(f"  {key} {visible(value)}" for key, value in about.items() if value)
    yield Text(visible(view.id), "bold").append(head, "default not bold")
    if view.problem:
        yield Text(f"  training would leave it out: {visible(view.problem)}", "yellow")
    if view.note:
        yield Text(f"  longer than a row: {view.note}", "yellow")
    for number, picture in enumerate(view.pictures):
        yield Text(f"  picture {number}: {picture_words(picture)}", "cyan")
    if not view.documents:
        for turn in view.turns:
            if turn.thinking:
                yield Text(f"  {turn.role} thinks: {visible(turn.thinking)}", "dim")
            yield Text(f"  {turn.role}: {visible(turn.text)}")
        length = sum(len(turn.text) + len(turn.thinking) for turn in view.turns)
        yield Text(f"  {len(view.turns)} turns, {length:,} characters", "dim")
    for document in view.documents:
        yield Text(f"  {document.title}: {document_words(document)}")
        yield _document(document, colour)
    for name, text in extra_words(view).items():
        yield Text(f"  {visible(name)}: {visible(text)}")


def _document(document: DocumentView, colour: bool) -> Text:
    from rich.text import Text

    out = Text()
    for labelled, group in groupby(document.tokens, lambda token: token.labelled):
        stretch = [(_token(token), "bold green" if labelled else _STYLES[token.kind]) for token in group]
        marks = [("«", ""), *stretch, ("»", "")] if labelled and not colour else stretch
        for text, style in marks:
            out.append(text, style)
    return out


def _token(token: TokenView) -> str:
    return f"<image x {len(token.ids)}>" if token.kind == "image" else visible(token.text)


def _source(name: str, one: SourceStatistics) -> Iterator[Text]:
    from rich.text import Text

    yield Text(visible(name) or "(no name)", "bold")
    for fact, words in fact_words(one).items():
        yield Text(f"  {fact:<18}").append(visible(words))
    for measure in measures_of(one):
        bars = one.histogram(measure)
        low, *more = range_words(one, measure)
        ends = f"{low} to {more[1]}, {more[0]}" if more else low
        line = Text(f"  {measure:<18}{one.total(measure):,}  ")
        yield line.append(spark([bar.samples for bar in bars]), "cyan").append(f"  {ends}")


def spark(counts: list[int]) -> str:
    """Counts as blocks; what is not zero is seen."""
    most = max(counts)
    return "".join(_BLOCKS[-(-8 * count // most)] for count in counts)
