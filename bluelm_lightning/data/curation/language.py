"""LanguageFilter: which language a text is in, by its script and its function words.

A cheap rule, our choice, at about 10 microseconds a text: a filter must not cost more than what it guards. The script
decides for most languages; between those in Latin letters the words that every sentence needs decide. It knows 12
languages and says nothing about texts that are too short or too mixed; for more, write a `Filter` over a library.
"""

from __future__ import annotations

import re

from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.step import Dropped, Filter
from bluelm_lightning.errors import ConfigError

PREFIX = 600  # characters that are looked at
_WORDS = {
    "en": "the of and is are was were to in that it for with on as this be at by have has not what which does do "
    "there no how many from or an they you he she his her we can will would their its if about when who where",
    "de": "der die das und ist nicht ein eine einen dem den des zu mit von auf für sich wie was welche welcher sind "
    "war auch es im am aus bei nach wird wurde haben hat kein keine oder ich sie wir wo gibt diesem dieser",
    "fr": "le la les des une et est dans que qui pour pas sur avec au aux ce cette il elle sont du nous vous ne "
    "plus quelle quel par ou mais été avoir leur y combien où quelles",
    "es": "el los las una y es en que por con para del se lo su al como más pero sus este esta son qué cuál hay muy "
    "sin sobre también fue ha está cuántos dónde",
    "it": "il lo gli una e è di che per con non del della sono nel alla dei si da come più anche ha questo questa "
    "quale c'è nella delle degli quanti dove",
    "pt": "o os as uma e é em que por com para do da não se no na mais dos das como mas foi ao ele são qual esta "
    "este seu sua você há pelo pela quantos onde",
    "nl": "de het een en van is niet dat op te zijn met voor die er aan ook als bij naar wat welke deze dit maar "
    "heeft was werd hoeveel waar",
}
_SCRIPTS = {
    "zh": r"[\u4e00-\u9fff]",
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af\u1100-\u11ff]",
    "ru": r"[\u0400-\u04ff]",
    "ar": r"[\u0600-\u06ff]",
}
LANGUAGES = (*_WORDS, *_SCRIPTS)
_FINDERS = {language: re.compile(pattern) for language, pattern in _SCRIPTS.items()}
_LISTS: dict[str, tuple[str, ...]] = {}
for _language, _text in _WORDS.items():
    for _word in dict.fromkeys(_text.split()):
        _LISTS[_word] = (*_LISTS.get(_word, ()), _language)
_SPLIT = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def find_language(text: str) -> str | None:
    """``en``, ``zh``, ...; None where the text says too little: under two function words, or two languages alike."""
    text = text[:PREFIX].lower()
    if not text.isascii():
        letters = sum(map(str.isalpha, text)) or 1
        counts = {language: len(finder.findall(text)) for language, finder in _FINDERS.items()}
        if counts["ja"] > 0.1 * letters:  # kana: Japanese writes Chinese signs too
            return "ja"
        best = max(counts, key=counts.__getitem__)
        if counts[best] > 0.3 * letters:
            return best
    scores: dict[str, int] = {}
    for word in set(_SPLIT.findall(text)):
        for language in _LISTS.get(word, ()):
            scores[language] = scores.get(language, 0) + 1
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    if not ranked or ranked[0][1] < 2 or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


class LanguageFilter(Filter):
    """Keeps texts in given languages, and notes the language in ``meta``.

    Args:
        languages: of en, de, fr, es, it, pt, nl, zh, ja, ko, ru, ar.
        keep_unknown: keep texts whose language cannot be told: formulas, code, labels of a word or two.
        note: key of the record that gets the language; None leaves records as they are.
    """

    def __init__(self, languages: list[str], keep_unknown: bool = True, note: str | None = None) -> None:
        wrong = sorted(set(languages) - set(LANGUAGES))
        if wrong or not languages:
            raise ConfigError(f"{wrong[0] if wrong else 'nothing'!r} is not one of {', '.join(LANGUAGES)}", "languages")
        self.languages, self.keep_unknown, self.note = sorted(languages), keep_unknown, note

    def process(self, record: Record) -> Record | Dropped:
        found = find_language(record.text)
        if found is None and not self.keep_unknown:
            return Dropped("language unknown")
        if found is not None and found not in self.languages:
            return Dropped("other language", found)
        if self.note:
            return Record({**record.data, self.note: found or "unknown"}, record.pictures, record.root)
        return record
