"""Quality filters by length and repetition."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Dropped, Filter
from bluelm_lightning.errors import ConfigError

_RUN = re.compile(r"([^\s\d])\1{9,}")  # one sign ten times and more; zeros and lines of spaces are common


class LengthFilter(Filter):
    """Drops texts that are too short or too long, and conversations without an answer.

    Args:
        min_characters: of the document, or of all turns together; pictures do not count.
        max_characters: None is no bound.
        min_answer: characters of the last assistant turn; 0 lets unanswered conversations pass (prompts).
    """

    def __init__(self, min_characters: int = 1, max_characters: int | None = None, min_answer: int = 1) -> None:
        if max_characters is not None and max_characters < min_characters:
            raise ConfigError(f"{max_characters} is below min_characters {min_characters}", "max_characters")
        self.min_characters, self.max_characters, self.min_answer = min_characters, max_characters, min_answer

    def process(self, record: Record) -> Record | Dropped:
        length = sum(len(text.strip()) for text in record.texts())
        if length < self.min_characters:
            return Dropped("too short", f"{length} characters, at least {self.min_characters}")
        if self.max_characters is not None and length > self.max_characters:
            return Dropped("too long", f"{length} characters, at most {self.max_characters}")
        turns = record.data.get("messages")
        if turns and self.min_answer:
            last = turns[-1]
            answer = len(last["content"].strip()) if last["role"] == "assistant" else 0
            if answer < self.min_answer:
                return Dropped("no answer", f"{answer} characters, at least {self.min_answer}")
        return record


class RepetitionFilter(Filter):
    """Drops texts that repeat themselves, by rules after MassiveText's (Rae et al., 2021); the bounds are our choice.

    Texts of fewer than `min_words` words are only looked through for runs of one sign.

    Args:
        min_words: below, shares of words say nothing.
        max_line_share: characters in lines that stood before, of all.
        max_top_share: words covered by the most frequent pair of words, of all.
        max_repeated_share: words in runs of `ngram` words that stood before, of all.
        ngram: length of those runs.
    """

    def __init__(
        self,
        min_words: int = 20,
        max_line_share: float = 0.3,
        max_top_share: float = 0.2,
        max_repeated_share: float = 0.3,
        ngram: int = 5,
    ) -> None:
        for name, share in (("line", max_line_share), ("top", max_top_share), ("repeated", max_repeated_share)):
            if not 0 < share <= 1:
                raise ConfigError(f"{share} is no share; give more than 0 and at most 1", f"max_{name}_share")
        if min_words < 2 or ngram < 1:
            key = "min_words" if min_words < 2 else "ngram"
            raise ConfigError(f"{min(min_words, ngram)} is too small; give at least {2 if min_words < 2 else 1}", key)
        self.min_words, self.ngram = min_words, ngram
        self.max_line_share, self.max_top_share = max_line_share, max_top_share
        self.max_repeated_share = max_repeated_share

    def process(self, record: Record) -> Record | Dropped:
        for text in record.texts():
            run = _RUN.search(text)
            if run and len(run[0]) > 0.2 * len(text):
                return Dropped("one sign repeated", f"{run[1]!r} {len(run[0])} times")
            words = text.split()
            if len(words) >= self.min_words:
                why = self._lines(text) or self._pairs(words) or self._runs(words)
                if why:
                    return why
        return record

    def _lines(self, text: str) -> Dropped | None:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 4 or len(set(lines)) == len(lines):
            return None
        share = 1 - sum(map(len, set(lines))) / sum(map(len, lines))
        return Dropped("repeated lines", f"{share:.0%} of the text") if share > self.max_line_share else None

    def _pairs(self, words: list[str]) -> Dropped | None:
        if len(set(words)) * 4 > len(words) * 3:  # most words stand once: no pair can be that frequent
            return None
        pair, count = Counter(pairwise(words)).most_common(1)[0]
        share = 2 * count / len(words)
        if count > 2 and share > self.max_top_share:
            return Dropped("repeated words", f"{' '.join(pair)!r} {count} times in {len(words)} words")
        return None

    def _runs(self, words: list[str]) -> Dropped | None:
        n, seen, covered, end = self.ngram, set(), 0, 0
        if len(words) <= n:
            return None
        for start, run in enumerate(zip(*(words[shift:] for shift in range(n)))):
            if run in seen:
                covered += start + n - max(start, end)
                end = start + n
            seen.add(run)
        share = covered / len(words)
        return Dropped("repeated passages", f"{share:.0%} of the words") if share > self.max_repeated_share else None
