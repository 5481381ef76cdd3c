"""Needles in a haystack: words hidden in a text, and questions about them after it.

Our choice after the common "needle in a haystack" test. Every text hides one word of each kind (``the animal is
otter.``), and a question names a kind: so the last needle is no answer, and a guess within the kind is right once in
twelve times. Each word is one token and stands nowhere else in the text. Codes of several tokens under names of several
tokens need two steps of attention, which models of this size did not learn in the steps that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import Message, Sample

_TEXT = """
animal: heron otter falcon raven badger lynx bison gecko stork weasel moose lemur
flower: lotus tulip violet lily poppy daisy peony aster orchid clover jasmine dahlia
spice: basil cumin ginger saffron pepper nutmeg anise fennel clove thyme paprika mustard
jewel: amber coral quartz jasper opal pearl ruby topaz garnet onyx jade zircon"""
KINDS = {kind: words.split() for kind, words in (line.split(": ") for line in _TEXT.strip().splitlines())}
WORDS = [*KINDS, *(word for words in KINDS.values() for word in words)]  # each a token of the recipe's tokenizer


def needle(
    haystack: Sequence[str],
    tokens: int,
    measure: Callable[[str], int],
    seed: int,
    depth: float | None = None,
    questions: int = 1,
) -> Sample:
    """A text of about ``tokens`` tokens with a word of each kind in it, and ``questions`` about them.

    Args:
        haystack: texts to fill with, cut into words; those of ``WORDS`` are left out.
        tokens: length of the whole, within a word; the needles and questions alone may be longer.
        measure: tokens of a text.
        seed: of everything.
        depth: place of the needle that is asked first, 0 = at the start, 1 = at the end; default: anywhere.
        questions: asked, one after the other, each about another kind; 1 to 4.

    Raises:
        ConfigError: more questions than kinds, or none.
    """
    if not 1 <= questions <= len(KINDS):
        raise ConfigError(f"{questions} questions asked, a text hides 1 to {len(KINDS)} words; change it", "questions")
    rng = Random(f"needle {seed}")
    kinds = rng.sample(list(KINDS), len(KINDS))
    words = [rng.choice(KINDS[kind]) for kind in kinds]
    hidden = [f"the {kind} is {word}." for kind, word in zip(kinds, words)]
    asked = [f"the {kind}?" for kind in kinds[:questions]]
    rest = sum(map(measure, hidden)) + sum(measure(text) + 5 for text in asked)  # 5: the template and the answer
    text = _words(haystack, rng, measure, tokens - rest)
    places = [rng.random() for _ in kinds]
    if depth is not None:
        places[0] = depth
    for place, sentence in sorted(zip(places, hidden), reverse=True):  # from the end, so places stay right
        text.insert(round(place * len(text)), sentence)
    messages: list[Message] = []
    for question, word in zip(asked, words):
        before = "" if messages else f"{' '.join(text)}\n"
        messages.append({"role": "user", "content": before + question})
        messages.append({"role": "assistant", "content": f" {word}"})  # the very token of the text: with its space
    return Sample(
        id=f"needle-{tokens}-{seed}", source="needle", messages=messages, task="needle", answer=words[questions - 1],
        meta={"tokens": tokens, "depth": places[0]},
    )  # fmt: skip


def _words(haystack: Sequence[str], rng: Random, measure: Callable[[str], int], tokens: int) -> list[str]:
    """Words of texts drawn at random, up to ``tokens``."""
    out: list[str] = []
    while tokens > 0:
        for word in haystack[rng.randrange(len(haystack))].split():
            if any(told in word for told in WORDS):
                continue
            tokens -= measure(f" {word}")
            if tokens <= 0:
                break
            out.append(word)
    return out
