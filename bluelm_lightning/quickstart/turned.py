"""TurnedPictures: shards whose pictures come in all eight orientations. A source needs no base class of ours."""

from __future__ import annotations

import io
from dataclasses import replace

from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.types import Sample

ORIENTATIONS = 8  # four quarter turns, each also mirrored


class TurnedPictures:
    """Eight times the samples of some shards: sample ``i`` is sample ``i // 8`` with its pictures turned.

    Only for texts that stay true when the picture is turned: colours and shapes, not digits or places.

    Args:
        path: as `ShardSource`.
    """

    def __init__(self, path: str) -> None:
        self.shards = ShardSource(path)
        self.block_sizes = [ORIENTATIONS * size for size in self.shards.block_sizes]
        self.fingerprint = f"{self.shards.fingerprint} x {ORIENTATIONS}"

    def __len__(self) -> int:
        return ORIENTATIONS * len(self.shards)

    def __getitem__(self, index: int) -> Sample:
        number, orientation = divmod(index, ORIENTATIONS)
        sample = self.shards[number]
        turned = [turn(data, orientation) for data in sample.images]
        return replace(sample, id=f"{sample.id}/{orientation}", images=turned)


def turn(data: bytes, orientation: int) -> bytes:
    """PNG bytes of a picture after ``orientation % 4`` quarter turns, and mirrored if ``orientation >= 4``."""
    from PIL import Image, ImageOps

    if not orientation:
        return data
    picture = Image.open(io.BytesIO(data)).rotate(90 * (orientation % 4), expand=True)
    if orientation >= 4:
        picture = ImageOps.mirror(picture)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
