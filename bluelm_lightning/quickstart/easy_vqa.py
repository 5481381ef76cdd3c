"""easy-VQA as samples: one coloured shape in a picture of 64 x 64, and questions about it.

Source: see `easy_vqa_pictures`. Our choice for thinking: say what is in the picture, "a red circle", then answer. A
picture that its questions do not describe in full (422 of 4,000 in training) gets no thinking and no caption.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from bluelm_lightning.quickstart.easy_vqa_pictures import SHAPES, Question, by_picture, descriptions, png
from bluelm_lightning.types import Message, Sample


def _task(asked: list[Question]) -> str:
    answer = asked[-1].answer
    if len(asked) > 1:
        return "easy_vqa"
    return f"easy_vqa.{'yes_no' if answer in ('yes', 'no') else 'shape' if answer in SHAPES else 'color'}"


def _sample(split: str, name: str, asked: list[Question], thinking: bool) -> Sample:
    picture = asked[0].picture
    seen = descriptions(split)[picture] if thinking else None
    messages: list[Message] = []
    for turn, question in enumerate(asked):
        reply: Message = {"role": "assistant", "content": question.answer}
        if seen:
            reply["thinking"] = seen
        messages += [{"role": "user", "content": "<image>" * (turn == 0) + question.text}, reply]
    return Sample(
        id=name,
        source="easy_vqa",
        messages=messages,
        images=[png(split, picture)],
        task=_task(asked),
        answer=asked[-1].answer,
        meta={"picture": picture, "questions": [question.index for question in asked]},
    )


def questions(split: str, thinking: bool | None = None, limit: int | None = None, seed: int = 0) -> Iterator[Sample]:
    """One sample a question; tasks ``easy_vqa.yes_no``, ``easy_vqa.shape``, ``easy_vqa.color``.

    Args:
        split: "train" or "test", the package's own.
        thinking: with the description, without, or by turns (None).
        limit: a random choice of so many questions; None takes all, in the order of the file.
    """
    asked = [question for group in by_picture(split).values() for question in group]
    if limit is not None:
        asked = random.Random(seed).sample(asked, min(limit, len(asked)))
    for turn, question in enumerate(asked):
        think = turn % 2 == 0 if thinking is None else thinking
        yield _sample(split, f"easy_vqa-{split}-{question.index:05d}", [question], think)


def conversations(split: str, turns: int, seed: int = 0, thinking: bool | None = None) -> Iterator[Sample]:
    """Several questions on one picture as one conversation, so that the picture is encoded once.

    One call asks every question once, shuffled, about `turns` to a sample; another seed is another pass. Thinking is
    the same for all turns of a sample, and alternates between samples when it is None.
    """
    rng = random.Random(seed)
    groups: list[list[Question]] = []
    for asked in by_picture(split).values():
        mixed, parts = rng.sample(asked, len(asked)), max(1, round(len(asked) / turns))
        groups += [mixed[part::parts] for part in range(parts)]
    rng.shuffle(groups)
    for index, group in enumerate(groups):
        think = index % 2 == 0 if thinking is None else thinking
        yield _sample(split, f"easy_vqa-{split}-{seed}-{index:05d}", group, think)


def captions(split: str = "train") -> Iterator[Sample]:
    """Pre-training documents ``"<image>a red circle"``, one for each picture that is described in full."""
    for picture, seen in descriptions(split).items():
        if seen:
            yield Sample(
                id=f"easy_vqa_caption-{split}-{picture:05d}",
                source="easy_vqa_caption",
                text=f"<image>{seen}",
                images=[png(split, picture)],
                meta={"picture": picture},
            )
