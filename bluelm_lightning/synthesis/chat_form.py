"""Questions and replies in the form of OpenAI's chat endpoints."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.data.chat import IMAGE, THINK, parse_generation
from bluelm_lightning.rl.rewards.asking import image_part
from bluelm_lightning.types import Generation


def content_of(turn: Any, images: Any) -> str | list[dict[str, Any]]:
    """A turn's text; with its pictures in their places, if it has any."""
    texts = turn["content"].split(IMAGE) if turn["role"] != "assistant" else [turn["content"]]
    if len(texts) == 1:
        return texts[0]
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        parts += [image_part(next(images))] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _text(said: Any) -> str:
    """What was said; half a surrogate pair, which no file can hold, becomes a question mark."""
    return str(said or "").encode(errors="replace").decode()


def read_reply(reply: Any) -> Generation:
    """A reply of the endpoint as a Generation; its tokens are those that the server counted, else words.

    Raises:
        KeyError, TypeError, IndexError, AttributeError: it has another form.
    """
    choice = reply["choices"][0]
    message = choice["message"]
    content, trace = _text(message["content"]), _text(message.get("reasoning_content") or message.get("reasoning"))
    thinking, answer = (trace.strip(), content.strip()) if trace else parse_generation(content)
    finished = choice.get("finish_reason", "stop") == "stop"
    text = f"{THINK}{trace}</think>{content}" if trace else content
    count = (reply.get("usage") or {}).get("completion_tokens")
    tokens = int(count) if count is not None else len(text.split())
    return Generation([], text, thinking, answer if finished else None, tokens, finished)
