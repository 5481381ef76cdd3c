"""Needles in a haystack: codes hidden in a text, and questions about them after it.

Our choice after the common "needle in a haystack" test: several needles a text, so that the last code is no answer, and
a place for the one asked, so that accuracy can be shown by depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from bluelm_lightning.types import Message, Sample

_TEXT = """
heron otter maple cedar amber coral basil cumin delta ember falcon ginger hazel indigo jasper kelp lotus mango nettle
olive pepper quartz raven saffron tulip umber violet walnut yarrow zephyr acorn birch"""
NAMES = _TEXT.split()


def needle(
    haystack: Sequence[str],
    tokens: int,
    measure: Callable[[str], int],
    seed: int,
    depth: float | None = None,
    needles: int = 4,
    questions: int = 1,
) -> Sample:
    """A text of about ``tokens`` tokens with ``needles`` sentences in it, and ``questions`` of them asked.

    Args:
        haystack: texts to fill with, cut into words.
        tokens: length of the whole, within a word.
        measure: tokens of a text.
        seed: of everything.
        depth: place of the needle that is asked first, 0 = at the start, 1 = at the end; default: anywhere.
        needles: sentences hidden.
        questions: asked, one after the other, in random order.
    """
    rng = Random(f"needle {seed}")
    names = rng.sample(NAMES, needles)
    codes = [f"{rng.randrange(1000):03d}" for _ in names]
    hidden = [f"the code of {name} is {code}." for name, code in zip(names, codes)]
    rest = sum(map(measure, hidden)) + questions * (
        measure(f"the code of {names[0]}?") + 8
    )  # 8: the template and codes
    words = _words(haystack, rng, measure, tokens - rest)
    places = [rng.random() for _ in names]
    if depth is not None:
        places[0] = depth
    for place, sentence in sorted(zip(places, hidden), reverse=True):  # from the end, so places stay right
        words.insert(round(place * len(words)), sentence)
    messages: list[Message] = []
    for number in [0, *rng.sample(range(1, needles), questions - 1)]:
        text = f"{' '.join(words)}\n" if not messages else ""
        messages.append({"role": "user", "content": f"{text}the code of {names[number]}?"})
        messages.append({"role": "assistant", "content": codes[number]})
    return Sample(
        id=f"needle-{tokens}-{seed}", source="needle", messages=messages, task="needle", answer=messages[-1]["content"],
        meta={"tokens": tokens, "depth": places[0]},
    )  # fmt: skip


def _words(haystack: Sequence[str], rng: Random, measure: Callable[[str], int], tokens: int) -> list[str]:
    """Words of texts drawn at random, up to ``tokens``."""
    out: list[str] = []
    while tokens > 0:
        for word in haystack[rng.randrange(len(haystack))].split():
            tokens -= measure(f" {word}")
            if tokens <= 0:
                break
            out.append(word)
    return out
