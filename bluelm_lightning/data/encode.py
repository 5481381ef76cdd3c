"""From a raw sample to token ids, labels and tiles."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from bluelm_lightning.data import chat
from bluelm_lightning.data.chat import Piece
from bluelm_lightning.data.images import decode_image
from bluelm_lightning.data.tiling import tile_image
from bluelm_lightning.errors import DataError
from bluelm_lightning.types import IGNORE, Encoded, ImageSpec, Sample

_CLOSED = Piece("special", chat.END_THINK, True)
_REPEATS = 1000  # characters; longer texts are documents and traces, which do not come again soon, if at all


class Encoder:
    """Encodes samples for one model and one tokenizer. Picklable, so that loader workers can carry it.

    Args:
        tokenizer: fast tokenizer with the template's special tokens.
        image_spec: tile side and tokens a tile of the model.
        max_grid: pictures are cut into at most ``max_grid x max_grid`` tiles.
        thumbnail: put one tile with the whole picture before the others.
    """

    def __init__(self, tokenizer: Any, image_spec: ImageSpec, max_grid: int = 4, thumbnail: bool = False) -> None:
        self.tokenizer, self.image_spec = tokenizer, image_spec
        self.max_grid, self.thumbnail = max_grid, thumbnail
        self.special = {token: tokenizer.convert_tokens_to_ids(token) for token in chat.SPECIAL_TOKENS}
        self._markers = frozenset(self.special.values())
        self._cache: dict[str, array[int]] = {}

    def __call__(self, sample: Sample, cut: float | None = None, stated: float | None = None) -> Encoded:
        """A training sample, with labels.

        Args:
            sample: the sample.
            cut: keep this share of the tokens of each trace and close it there, as a spent budget does: the answer is
                learnt, the early ``</think>`` is not.
            stated: the prompt states a budget of so many times the trace's tokens (at least 1; of a cut trace, 1).

        Raises:
            DataError: naming file and sample: a broken picture, or as many ``<image>`` as there are pictures not given.
        """
        return self._encode(sample, chat.render(sample), cut, stated)

    def prompt(self, sample: Sample, thinking: bool, budget: int | None = None) -> Encoded:
        """The sample up to the model's turn, without labels; it states the ``budget`` if there is one."""
        return self._encode(sample, chat.render_prompt(sample, thinking, budget))

    @staticmethod
    def without_traces(sample: Sample) -> Sample:
        """The same sample in non-thinking mode."""
        turns = [{key: value for key, value in turn.items() if key != "thinking"} for turn in sample.messages]
        return replace(sample, messages=turns)  # type: ignore[arg-type]

    def _encode(
        self, sample: Sample, pieces: Iterable[Piece], cut: float | None = None, stated: float | None = None
    ) -> Encoded:
        where = sample.where or sample.id
        tiles = [self._tiles(data, number, where) for number, data in enumerate(sample.images)]
        ids: list[int] = []
        loss: list[bool] = []
        images, opened, switch = 0, -1, -1
        for piece in pieces:
            if cut is not None and piece == _CLOSED:
                del ids[opened + round(cut * (len(ids) - opened)) :], loss[len(ids) :]
                piece = piece._replace(loss=False)
            if stated is not None and piece[:2] == _CLOSED[:2]:
                said = self._text(chat.state_budget(round((stated if cut is None else 1) * (len(ids) - opened))))
                ids[switch:switch], loss[switch:switch] = said, [False] * len(said)
            new: Sequence[int]
            if piece.kind == "image":
                count = len(tiles[images]) * self.image_spec.tokens_per_tile if images < len(tiles) else 0
                new = [self.special[chat.IMAGE]] * count
                images += 1
            else:
                new = [self.special[piece.text]] if piece.kind == "special" else self._text(piece.text)
            ids += new
            loss += [piece.loss] * len(new)
            opened = len(ids) if piece.text == chat.THINK and piece.kind == "special" else opened
            switch = len(ids) if piece == chat.SWITCH else switch
        if images != len(tiles):
            reason = f"{images} <image> placeholders but {len(tiles)} pictures; add or remove placeholders"
            raise DataError(reason, where)
        return self._record(sample, ids, loss, tiles)

    def _record(self, sample: Sample, ids: list[int], loss: list[bool], tiles: list[torch.Tensor]) -> Encoded:
        size = self.image_spec.tile_size
        tokens = torch.tensor(ids, dtype=torch.long)
        labels = torch.full_like(tokens, IGNORE)
        labels[:-1] = torch.where(torch.tensor(loss)[1:], tokens[1:], IGNORE)  # shifted here, once, inside the document
        return Encoded(
            id=sample.id,
            source=sample.source,
            ids=tokens,
            labels=labels,
            tiles=torch.cat(tiles) if tiles else torch.empty(0, 3, size, size, dtype=torch.uint8),
            image_positions=(tokens == self.special[chat.IMAGE]).nonzero().flatten(),
        )

    def _text(self, text: str) -> Sequence[int]:
        """Plain text: special tokens spelled out in it are not recognised."""
        if len(text) > _REPEATS:
            return self._plain(text)
        if text not in self._cache:
            if len(self._cache) > 10_000:
                self._cache.clear()
            self._cache[text] = array("i", self._plain(text))  # 4 bytes an id; a list takes 36
        return self._cache[text]

    def _plain(self, text: str) -> list[int]:
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        ids = self.tokenizer(text, **plain)["input_ids"]
        if self._markers.isdisjoint(ids):
            return ids
        # Unigram and word-level vocabularies hold "</s>" as an ordinary word too: cut the text in the middle of it.
        if len(text) < 2:
            return [i for i in ids if i not in self._markers]
        spans = zip(ids, self.tokenizer(text, **plain, return_offsets_mapping=True)["offset_mapping"])
        cuts = [max(1, (start + end) // 2) for i, (start, end) in spans if i in self._markers]
        return [i for start, end in pairwise([0, *cuts, len(text)]) for i in self._plain(text[start:end])]

    def _tiles(self, data: bytes, number: int, where: str) -> torch.Tensor:
        try:
            image = decode_image(data)
        except DataError as error:
            raise DataError(f"image {number}: {error.reason}", where) from error
        return tile_image(image, self.image_spec.tile_size, max_grid=self.max_grid, thumbnail=self.thumbnail)
