"""Pictures in eight orientations."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image

from bluelm_lightning.data.shards import ShardWriter
from bluelm_lightning.quickstart.turned import ORIENTATIONS, TurnedPictures, turn
from bluelm_lightning.types import Sample


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_eight_orientations_of_a_picture_are_its_symmetries():
    data = tiny.png(6, 4)
    seen = [_pixels(turn(data, orientation)) for orientation in range(ORIENTATIONS)]
    original = _pixels(data)
    assert np.array_equal(seen[0], original)
    assert np.array_equal(seen[1], np.rot90(original))
    assert np.array_equal(seen[4], original[:, ::-1])
    assert len({(s.shape, s.tobytes()) for s in seen}) == ORIENTATIONS


def test_turned_pictures_is_a_source(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for number in range(3):
            writer.write(Sample(f"s{number}", "shapes", text="<image>a circle", images=[tiny.png(seed=number)]))
    source = TurnedPictures(str(tmp_path))
    assert len(source) == 24
    assert source.block_sizes == [24]
    assert source[9].id == "s1/1"
    assert source[9].text == "<image>a circle"
    assert np.array_equal(_pixels(source[17].images[0]), np.rot90(_pixels(tiny.png(seed=2))))
    with pytest.raises(IndexError):
        source[24]
