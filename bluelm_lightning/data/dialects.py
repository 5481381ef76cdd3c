"""Records of other tasks than conversation -> the turns or the text that `records` understands::

    {"image": "a.jpg", "caption": "a red circle"}                          caption; a list of captions: the first
    {"image": "a.jpg", "question": "hue?", "answer": "red"}                VQA; or "answers", "choices" and a letter
    {"image": "p.png", "lines": ["To whom", "it may concern"]}             a page of OCR; or "words", or "ocr", a string
    {"image": "s.png", "size": [1080, 2400], "elements": [                 a GUI screen, boxes in pixels
        {"type": "button", "text": "Settings", "box": [40, 90, 200, 150]}]}

Our choice: a page is its lines in their order, one a line. A screen asks for the place of each element, and answers
with the box in thousandths of width and height, ``[37, 38, 185, 62]``, so that it does not depend on the size of the
picture. Keys that become turns leave the record; the others stay in ``Sample.meta``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from bluelm_lightning.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BODIES = ("messages", "conversations", "text")


def as_conversation(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A record that has turns or a text already, as it is; else what its keys mean.

    Raises:
        DataError: naming `where` and the field: answers of a wrong kind, a choice that is none, a box outside.
    """
    if any(record.get(body) is not None for body in _BODIES):
        return record
    for key, convert in _FORMS.items():
        if record.get(key) is not None:
            return convert(dict(record), where)
    return record


def _caption(record: dict[str, Any], where: str) -> dict[str, Any]:
    key = "caption" if record.get("caption") is not None else "captions"
    given = record.pop(key)
    record["text"] = _one_of(given, f"{where}: {key}")
    return record


def _vqa(record: dict[str, Any], where: str) -> dict[str, Any]:
    question = _one_of(record.pop("question"), f"{where}: question")
    choices = record.pop("choices", None) or record.pop("options", None)
    given = record.pop("answers", None) if record.get("answer") is None else record.pop("answer")
    if choices is not None:
        question, given = _choose(question, choices, given, where)
    record["messages"] = [{"role": "user", "content": question}]
    if given is not None:
        record["answer"] = _most(given, f"{where}: answer")
        record["messages"].append({"role": "assistant", "content": record["answer"]})
    return record


def _choose(question: str, choices: Any, given: Any, where: str) -> tuple[str, Any]:
    """The options stand in the question, the answer is a letter, one alone; or none."""
    if not isinstance(choices, list) or not 1 < len(choices) <= len(LETTERS):
        raise DataError(f"{choices!r:.60} are no choices; write a list of 2 to {len(LETTERS)}", f"{where}: choices")
    lines = [question, *(f"{LETTERS[n]}. {choice}" for n, choice in enumerate(choices))]
    if given is None:  # a hidden answer
        return "\n".join(lines), None
    number = given
    if isinstance(given, str):
        names, letter = [str(choice) for choice in choices], given.strip().upper()
        number = names.index(given) if given in names else LETTERS.find(letter) if len(letter) == 1 else -1
    if isinstance(number, bool) or not (isinstance(number, int) and 0 <= number < len(choices)):
        text = f"{given!r} is none of {len(choices)} choices; write one letter, or its number from 0"
        raise DataError(text, f"{where}: answer")
    return "\n".join(lines), LETTERS[number]


def _most(given: Any, where: str) -> str:
    """The most frequent of several people's answers, the first among equals."""
    given = given if isinstance(given, list) else [given]
    texts = [str(answer.get("answer", "")) if isinstance(answer, dict) else str(answer) for answer in given]
    if not any(texts):
        raise DataError("has no answer in it; write a string or a list of strings", where)
    return Counter(filter(None, texts)).most_common(1)[0][0]


def _page(record: dict[str, Any], where: str) -> dict[str, Any]:
    key = next(key for key in ("lines", "ocr", "words") if record.get(key) is not None)
    given = record.pop(key)
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, list):
        raise DataError(f"is of type {type(given).__name__}; write a string or a list", f"{where}: {key}")
    held = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text for text in held if isinstance(text, str)]
    if not texts or len(texts) < len(held):
        raise DataError("has an item without text; write strings, or objects with text", f"{where}: {key}")
    boxes = [part["box"] for part in parts if isinstance(part, dict) and "box" in part]
    if boxes:
        record["boxes"] = boxes
    record["text"] = (" " if key == "words" else "\n").join(texts)
    return record


def _screen(record: dict[str, Any], where: str) -> dict[str, Any]:
    elements: Any = record.pop("elements")
    size: Any = record.get("size")
    if size is None and {"width", "height"} <= record.keys():
        size = [record["width"], record["height"]]
    if not _numbers(size, 2) or min(size) <= 0:
        raise DataError(f"{size!r} is no size; write [width, height] of the screen in pixels", f"{where}: size")
    if not isinstance(elements, list) or not elements:
        raise DataError("is no list of elements; write at least one", f"{where}: elements")
    record["messages"] = []
    for number, element in enumerate(elements):
        asked, box = _element(element, size, f"{where}: elements[{number}]")
        record["messages"] += [{"role": "user", "content": asked}, {"role": "assistant", "content": str(box)}]
    return record


def _element(element: Any, size: list[float], where: str) -> tuple[str, list[int]]:
    box = element.get("box") if isinstance(element, dict) else None
    if not isinstance(box, list) or not _numbers(box, 4):
        raise DataError("has no box; write [left, top, right, bottom] in pixels", where)
    inside = 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
    if not inside:
        raise DataError(f"box {box} is empty or outside of {size[0]} x {size[1]}; correct it", where)
    name, kind = str(element.get("text") or "").strip(), str(element.get("type") or "element")
    if not name and not element.get("type"):
        raise DataError("has neither text nor type; name it", where)
    what = f'{kind} "{name}"' if name else kind
    return f"Where is the {what}?", [round(1000 * at / size[n % 2]) for n, at in enumerate(box)]


def _numbers(value: Any, count: int) -> bool:
    good = isinstance(value, list | tuple) and len(value) == count
    return good and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)


def _one_of(given: Any, where: str) -> str:
    first = given[0] if isinstance(given, list) and given else given
    if not isinstance(first, str) or not first.strip():
        raise DataError(f"{given!r:.40} is no text; write a string", where)
    return first


_FORMS = {
    "question": _vqa,
    "elements": _screen,
    "caption": _caption,
    "captions": _caption,
    "lines": _page,
    "ocr": _page,
    "words": _page,
}
