"""Pictures in formats that shards do not hold become PNG; what cannot be decoded, or is a bomb, is refused."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, features

from bluelm_lightning.data.curation.pictures import open_picture
from bluelm_lightning.data.image_bytes import image_bytes
from bluelm_lightning.data.images import decode_image, image_size
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


def photo(form, orientation, xmp=False):
    """32 x 16 as stored, red on the left."""
    picture, out = Image.new("RGB", (32, 16), "blue"), BytesIO()
    picture.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    tag = {"xmp": f'<x tiff:Orientation="{orientation}"/>'.encode()} if xmp else {"exif": exif}
    picture.save(out, form, **tag, **({"lossless": True} if form == "WEBP" else {"quality": 95}))
    return out.getvalue()


def late(png):
    """The PNG with its EXIF behind its pixels."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4])
    return png[:start] + png[end:-12] + png[start:end] + png[-12:]


AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "TIFF", AVIF])
def test_a_turned_picture_is_the_same_whichever_way_it_comes(tmp_path, form, orientation):
    data = photo(form, orientation)
    seen = decode_image(data)
    assert image_size(data) == (seen.shape[2], seen.shape[1]) == ((16, 32) if orientation >= 5 else (32, 16))
    read = Image.open(BytesIO(data))
    for value in (data, Image.open(BytesIO(data)), read.convert("RGB"), {"bytes": data}):
        ours = image_bytes(value, tmp_path, "w")
        assert torch.equal(decode_image(ours), seen)
        assert np.array_equal(np.asarray(open_picture(ours)), seen.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("data", [photo("JPEG", 6, xmp=True), late(photo("PNG", 6))], ids=["xmp", "behind the pixels"])
def test_a_turn_is_seen_wherever_it_is_stated(tmp_path, data):
    for value in (data, Image.open(BytesIO(data))):
        ours = image_bytes(value, tmp_path, "w")
        assert decode_image(ours).shape == (3, 32, 16)
        assert open_picture(ours).size == (16, 32)


def test_damaged_exif_costs_no_picture_whichever_way_it_comes(tmp_path):
    out = BytesIO()
    Image.new("RGB", (32, 16)).save(out, "JPEG", exif=b"Exif\0\0nonsense, not TIFF at all")
    for value in (out.getvalue(), Image.open(out)):
        ours = image_bytes(value, tmp_path, "w")
        assert decode_image(ours).shape == (3, 16, 32)
        assert open_picture(ours).size == (32, 16)


def big_endian(ramp):
    """As a TIFF of another machine is read."""
    return Image.frombytes("I;16B", ramp.shape[::-1], ramp.astype(">u2").tobytes())


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
@pytest.mark.parametrize("turn", [1, 6])
def test_16_bits_of_grey_are_not_clipped(tmp_path, mode, turn):
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(4, 16)
    picture = big_endian(ramp) if mode == "I;16B" else Image.fromarray(ramp if mode == "I;16" else ramp.astype("i4"))
    assert picture.mode == mode
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.info |= {"exif": exif.tobytes(), "transparency": 0}  # which nobody applies to 16 bits
    wanted = np.rot90(ramp >> 8, -1) if turn == 6 else ramp >> 8
    ours = image_bytes(picture, tmp_path, "w")
    assert decode_image(ours)[0].tolist() == wanted.tolist()
    assert np.asarray(open_picture(ours))[..., 0].tolist() == wanted.tolist()


def test_32_bits_are_refused_and_odd_alpha_is_kept(tmp_path):
    for values in (np.full((2, 2), 70_000, np.int32), np.full((2, 2), 0.5, np.float32)):
        with pytest.raises(DataError, match=r"^w: the image has pixels of 32 bits \(mode .\); store 8 or 16 bits"):
            image_bytes(Image.fromarray(values), tmp_path, "w")
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0)).convert("RGBa")
    assert decode_image(image_bytes(clear, tmp_path, "w")).min() == 255  # over white
