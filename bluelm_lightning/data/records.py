"""One record of JSON and its pictures -> one Sample, whatever dialect the record speaks; and back.

Accepted, all in :func:`parse_record` and nowhere else::

    {"messages": [{"role": "user", "content": "<image>sum?"}, {"role": "assistant", "content": "19", "thinking": "9+"}]}
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sum?"}]}, ...]}    OpenAI
    {"conversations": [{"from": "human", "value": "<image>sum?"}, {"from": "gpt", "value": "19"}]}    ShareGPT, LLaVA
    {"text": "<image>a red circle"}

``<think>..</think>`` at the start of an assistant's text becomes its ``thinking``; an empty block is no thinking.
With no ``<image>`` at all, the pictures go before the first user turn or the text; otherwise the numbers must match.
In assistant turns ``<image>`` is plain text, as in the chat template. Keys not named here go to ``Sample.meta``.
"""

from __future__ import annotations

import json
from typing import Any

from bluelm_lightning.data.chat import IMAGE
from bluelm_lightning.data.image_bytes import sniff
from bluelm_lightning.data.tar_scan import IMAGE_SUFFIX
from bluelm_lightning.data.turns import kind, parse_text, parse_turns
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import Sample

BODIES = ("messages", "conversations", "text")
RESERVED = ("id", "source", "task", "answer", *BODIES)


def load_json(data: bytes, where: str) -> Any:
    """Parses JSON. Raises DataError with the line and column where it stops being JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError, ten thousand brackets a RecursionError
        raise DataError(f"is not JSON: {error}; it begins with {data[:40]!r}", where) from error


def parse_record(record: Any, images: list[bytes], where: str, id: str = "", source: str = "") -> Sample:
    """Checks a record and turns it into a Sample.

    Args:
        record: what the JSON held.
        images: PNG, JPEG or WebP bytes, in the order of the placeholders.
        where: file and key, for messages: ``train-000003.tar:000123``.
        id, source: used when the record has none.

    Raises:
        DataError: naming `where`, field and fix: not exactly one of messages, conversations and text; an unknown role;
            a field of the wrong type; thinking twice or not closed; placeholders that do not match the pictures.
    """
    if not isinstance(record, dict):
        raise DataError(f"the record is of type {kind(record)}, not an object; write {{...}}", where)
    for number, data in enumerate(images):
        if not isinstance(data, bytes) or sniff(data) is None:
            what = repr(data[:12]) if isinstance(data, bytes) else kind(data)
            raise DataError(f"image {number} is not PNG, JPEG or WebP: {what}; convert it", where)
    given = [key for key in BODIES if record.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"needs exactly one of messages, conversations and text: it has {sorted(record)}", where)
    sample = Sample(
        id=_scalar(record, "id", where) or id,
        source=_scalar(record, "source", where) or source,
        images=images,
        task=_scalar(record, "task", where) or "",
        answer=_scalar(record, "answer", where),
        where=where,
        meta={key: value for key, value in record.items() if key not in RESERVED},
    )
    if given == ["text"]:
        sample.text = parse_text(record["text"], f"{where}: text")
    else:
        sample.messages = parse_turns(record[given[0]], f"{where}: {given[0]}")
    _place_images(sample, where)
    return sample


def to_record(sample: Sample) -> dict[str, Any]:
    """The JSON of a sample, without its pictures. Raises DataError if a meta key has the name of a field."""
    clash = sorted(set(sample.meta) & set(RESERVED))
    if clash:
        raise DataError(f"meta keys {clash} are names of fields; rename them", sample.where or f"sample {sample.id}")
    body = {"text": sample.text, "messages": sample.messages or None}  # both set is refused by parse_record
    record = {"id": sample.id, "source": sample.source, **body, "task": sample.task or None, "answer": sample.answer}
    return {key: value for key, value in record.items() if value is not None} | sample.meta


def _scalar(record: dict[str, Any], key: str, where: str) -> str | None:
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"is of type {kind(value)}; write a string", f"{where}: {key}")


def _place_images(sample: Sample, where: str) -> None:
    """Counts placeholders against pictures; writes placeholders where there are none."""
    prompts = [turn for turn in sample.messages if turn["role"] != "assistant"]
    found, count = sum(turn["content"].count(IMAGE) for turn in prompts), len(sample.images)
    found += (sample.text or "").count(IMAGE)
    if found and found != count:
        raise DataError(f"{found} {IMAGE} placeholders but {count} images; make the numbers equal or remove all", where)
    if found or not count:
        return
    user = next((turn for turn in prompts if turn["role"] == "user"), None)
    if sample.text is not None:
        sample.text = IMAGE * count + sample.text
    elif user is not None:
        user["content"] = IMAGE * count + user["content"]
    else:
        raise DataError(f"{count} images but no user turn to put them in; add one", where)


def parse_members(key: str, found: dict[str, bytes], where: str, source: str) -> Sample:
    """The members of one key in a tar -> a Sample: ``json``, or ``txt`` (a caption), and pictures.

    Args:
        key: the sample's id if its JSON has none.
        found: data by suffix, ``{"json": ..., "0.png": ...}``.
        where: shard and key, for messages.
        source: used when the record has none.

    Raises:
        DataError: as :func:`parse_record`; or JSON that does not parse, no text at all, or a gap in the pictures.
    """
    record = load_json(found["json"], f"{where}.json") if "json" in found else {}
    if "txt" in found and isinstance(record, dict) and all(record.get(body) is None for body in BODIES):
        try:
            record["text"] = found["txt"].decode()
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: {error}; save it again", f"{where}.txt") from error
    elif "json" not in found:
        raise DataError(f"has {sorted(found)} but no .json and no .txt; add one", where)
    return parse_record(record, _images(found, where), where, key, source)


def _images(found: dict[str, bytes], where: str) -> list[bytes]:
    """Pictures in order: ``KEY.jpg`` alone, or ``KEY.0.png``, ``KEY.1.jpg``, ... without a gap."""
    images: dict[int, bytes] = {}
    for suffix in found.keys() - {"json", "txt"}:
        match = IMAGE_SUFFIX.fullmatch(suffix)
        number = int(match[1] or 0) if match else -1
        if match is None or number in images:
            raise DataError(f"has {sorted(found)}; name pictures KEY.0.png, KEY.1.png, ...", where)
        images[number] = found[suffix]
    if images.keys() != set(range(len(images))):
        missing = min(set(range(len(images))) - images.keys())
        raise DataError(f"image {missing} is missing; there are {sorted(images)}, numbered from 0", where)
    return [images[number] for number in range(len(images))]
