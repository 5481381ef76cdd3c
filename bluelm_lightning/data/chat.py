"""The chat template: the one file that says how turns, images and thinking become text.

    [|SYSTEM|]:You are helpful.
    [|Human|]:<im_start><image><im_end>What is the sum?[|BlueThink|]
    [|AI|]:<think>3+5=8</think>8</s>

Source: the family's template ([|Human|]:, [|AI|]:, <im_start><image><im_end>, </s>) and the [|BlueThink|] switch are
the report's; that the switch stands at the end of the human turn, and that its absence means no thinking and no empty
<think></think>, are our choice. Loss falls on what the model writes: from the first token after ``[|AI|]:`` to
``</s>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Message, Sample

SYSTEM, HUMAN, AI = "[|SYSTEM|]:", "[|Human|]:", "[|AI|]:"
BLUE_THINK, THINK, END_THINK = "[|BlueThink|]", "<think>", "</think>"
IMAGE, IMAGE_START, IMAGE_END = "<image>", "<im_start>", "<im_end>"
END, PAD = "</s>", "<pad>"
SPECIAL_TOKENS = [PAD, END, SYSTEM, HUMAN, AI, BLUE_THINK, THINK, END_THINK, IMAGE, IMAGE_START, IMAGE_END]

_MARKERS = {"system": SYSTEM, "user": HUMAN, "assistant": AI}


class Piece(NamedTuple):
    """A stretch of the rendered sample.

    ``kind`` is ``special`` (``text`` is one special token), ``image`` (the tiles of the next picture) or ``text``
    (plain text: special tokens spelled out in it stay plain text, so that nobody can forge a turn).
    """

    kind: str
    text: str
    loss: bool


SWITCH = Piece("special", BLUE_THINK, False)


def render(sample: Sample) -> Iterator[Piece]:
    """A training sample as pieces.

    Raises:
        DataError: no turn at all, an unknown role, or a conversation that does not end with the assistant.
    """
    if sample.text is not None:
        yield from _content(sample.text, loss=True)
        yield Piece("special", END, True)
        return
    if not sample.messages or sample.messages[-1]["role"] != "assistant":
        reason = "a training conversation ends with an assistant turn; this one does not"
        raise DataError(reason, sample.where or sample.id)
    yield from _turns(sample.messages, sample)


def render_prompt(sample: Sample, thinking: bool, budget: int | None = None) -> Iterator[Piece]:
    """The sample up to the answer of its last turn, asking for thinking or not; earlier turns stay, without loss.

    With a ``budget`` the prompt states it, see :func:`state_budget`.
    """
    messages = list(sample.messages)
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise DataError("a prompt needs a user turn before the answer", sample.where or sample.id)
    yield from (piece._replace(loss=False) for piece in _turns(messages[:-1], sample))
    for piece in _human(messages[-1], thinking):
        yield piece
        if budget is not None and piece == SWITCH:
            yield Piece("text", state_budget(budget), False)
    yield Piece("special", AI, False)


def state_budget(tokens: int) -> str:
    """How a prompt says how many tokens its answer may think; it follows the switch. Our choice."""
    return f"<={tokens}"


def _turns(messages: list[Message], sample: Sample) -> Iterator[Piece]:
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            following = messages[index + 1] if index + 1 < len(messages) else message
            yield from _human(message, thinking=bool(following.get("thinking")))
        elif role == "assistant":
            yield from _assistant(message)
        elif role == "system":
            yield Piece("special", SYSTEM, False)
            yield from _content(message["content"], loss=False)
            yield Piece("text", "\n", False)
        else:
            raise DataError(f"role {role!r} is not one of system, user, assistant", sample.where or sample.id)


def _human(message: Message, thinking: bool) -> Iterator[Piece]:
    yield Piece("special", HUMAN, False)
    yield from _content(message["content"], loss=False)
    if thinking:
        yield SWITCH
    yield Piece("text", "\n", False)


def _assistant(message: Message) -> Iterator[Piece]:
    yield Piece("special", AI, False)
    thinking = message.get("thinking")
    if thinking:
        yield Piece("special", THINK, True)
        yield Piece("text", thinking, True)
        yield Piece("special", END_THINK, True)
    yield Piece("text", message["content"], True)
    yield Piece("special", END, True)


def _content(text: str, loss: bool) -> Iterator[Piece]:
    for index, part in enumerate(text.split(IMAGE)):
        if index:
            yield Piece("special", IMAGE_START, False)
            yield Piece("image", IMAGE, False)
            yield Piece("special", IMAGE_END, False)
        if part:
            yield Piece("text", part, loss)


def parse_generation(text: str) -> tuple[str | None, str | None]:
    """``<think>trace</think>answer</s>`` -> (trace, answer).

    No ``<think>`` means (None, answer). A ``<think>`` that is never closed is a failed answer: (trace, None).
    Source: the report counts an unclosed ``<think>`` as a failure.
    """
    text = text.split(END)[0]
    if not text.lstrip().startswith(THINK):
        return None, text.strip()
    trace, closed, answer = text.lstrip()[len(THINK) :].partition(END_THINK)
    return trace, answer.strip() if closed else None
