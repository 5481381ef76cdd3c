"""Pictures in formats that shards do not hold become PNG; what cannot be decoded, or is a bomb, is refused."""

from io import BytesIO

import pytest
from PIL import Image

from bluelm_lightning.data.image_bytes import image_bytes
from bluelm_lightning.errors import DataError


def encode(form, mode):
    out = BytesIO()
    Image.new("RGB", (8, 6), "red").convert(mode).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize(("form", "mode"), [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "CMYK"), ("TIFF", "RGBA")])
def test_other_formats_become_png(tmp_path, form, mode):
    with Image.open(BytesIO(image_bytes(encode(form, mode), tmp_path, "w"))) as image:
        assert (image.format, image.size, image.convert("RGB").getpixel((3, 3))) == ("PNG", (8, 6), (255, 0, 0))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_our_formats_pass_untouched(tmp_path, form):
    data = encode(form, "RGB")
    (tmp_path / "x").write_bytes(data)
    for value in (data, "x", str(tmp_path / "x"), {"bytes": data, "path": "y"}, {"bytes": None, "path": "x"}):
        assert image_bytes(value, tmp_path, "w") == data


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_halves(tmp_path):
    with pytest.raises(DataError, match=r"w: cannot be decoded: image file is truncated .*; leave it out"):
        image_bytes(encode("BMP", "RGB")[:100], tmp_path, "w")
    big = BytesIO()
    Image.new("1", (12_000, 12_000)).save(big, "TIFF", compression="group4")
    with pytest.raises(DataError, match="w: is 12000 x 12000, more than 134217728 pixels; make it smaller"):
        image_bytes(big.getvalue(), tmp_path, "w")
    for value in (None, 3, {"bytes": None, "path": None}):
        with pytest.raises(DataError, match=r"w: is of type .*; give a path, a data URI, bytes or a PIL image"):
            image_bytes(value, tmp_path, "w")
