"""Turns and texts of a record, in our own, OpenAI's and ShareGPT's dialect -> messages. See `records` for the whole."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.data.chat import END_THINK, IMAGE, THINK
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Message

ROLES = {role: role for role in ("system", "user", "assistant")}
ROLES |= {"developer": "system", "human": "user", "gpt": "assistant"}


def kind(value: Any) -> str:
    """The name of a value's type, for messages."""
    return type(value).__name__


def parse_turns(turns: Any, where: str) -> list[Message]:
    """A list of ``{role, content, thinking?}`` or ``{from, value}``. Raises DataError naming `where` and the turn."""
    if not isinstance(turns, list) or not turns:
        what = "is an empty list" if turns == [] else f"is of type {kind(turns)}"
        raise DataError(f"{what}; write a list of turns", where)
    return [parse_turn(turn, f"{where}[{number}]") for number, turn in enumerate(turns)]


def parse_turn(turn: Any, where: str) -> Message:
    """One of them."""
    if not isinstance(turn, dict):
        raise DataError(f"is of type {kind(turn)}; write an object with role and content", where)
    name = turn.get("role") or turn.get("from")
    if not isinstance(name, str) or name not in ROLES:
        raise DataError(f"role {name!r} is not one of {', '.join(ROLES)}", where)
    role = ROLES[name]
    given = turn["value"] if turn.get("content") is None and "value" in turn else turn.get("content")
    content = parse_text(given, f"{where}.content")
    if role == "assistant" and given is not content and IMAGE in content:
        raise DataError("an assistant turn holds an image; only system and user turns can", f"{where}.content")
    thinking = turn.get("thinking") or turn.get("reasoning_content")
    if thinking and not (role == "assistant" and isinstance(thinking, str)):
        raise DataError(f"{kind(thinking)} in a turn of {role}; thinking is a string of assistant", f"{where}.thinking")
    if role == "assistant" and content.lstrip().startswith(THINK):
        content, thinking = _split_thinking(content.lstrip(), thinking, where)
    message: Message = {"role": role, "content": content}
    if thinking:
        message["thinking"] = _encodable(thinking, f"{where}.thinking")
    return message


def _split_thinking(content: str, thinking: str | None, where: str) -> tuple[str, str]:
    trace, closed, answer = content[len(THINK) :].partition(END_THINK)
    if not closed:
        raise DataError(f"opens {THINK} and never closes it; add {END_THINK} or drop the record", f"{where}.content")
    if thinking or answer.lstrip().startswith(THINK):
        raise DataError(f"thinks twice: a second {THINK}, or a thinking field beside it; keep one", where)
    return answer.lstrip(), trace.strip()


def parse_text(value: Any, where: str) -> str:
    """A string, or OpenAI's list of parts as one string with ``<image>`` where a picture stands."""
    if isinstance(value, str):
        return _encodable(value, where)
    if not isinstance(value, list):
        raise DataError(f"is of type {kind(value)}; write a string or a list of parts", where)
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))


def _part(part: Any, where: str) -> str:
    form = part.get("type") if isinstance(part, dict) else None
    if form in ("image", "image_url"):
        return IMAGE
    if form == "text" and isinstance(part.get("text"), str):
        return _encodable(part["text"], where)
    raise DataError("is no part; write {'type': 'text', 'text': ...} or {'type': 'image'}", where)


def _encodable(text: str, where: str) -> str:
    """JSON can spell half a surrogate pair; a tokenizer would stop the training at it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"is not valid Unicode: {error}; remove that character", where) from error
    return text
