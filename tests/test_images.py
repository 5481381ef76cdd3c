"""Good pictures of every kind, bad ones each with its message."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from bluelm_lightning.data import images
from bluelm_lightning.data.images import decode_image, image_size
from bluelm_lightning.data.tiling import tile_image
from bluelm_lightning.errors import ConfigError, DataError


def encode(array, kind="PNG", mode=None, **options) -> bytes:
    out = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array, mode)).save(out, kind, **options)
    return out.getvalue()


def noise(height=50, width=70, channels=3, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 2),  # measured mean difference 0.87
        ("JPEG", {"quality": 95, "subsampling": 0}, 2),  # measured 0.41
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 2),
    ],
)
def test_formats(kind, options, tolerance):
    gradient = np.stack(np.broadcast_arrays(np.arange(70), np.arange(50)[:, None], 128), -1).astype(np.uint8)
    data = encode(gradient, kind, **options)
    image = decode_image(data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 50, 70)
    assert image_size(data) == (70, 50)
    difference = image.permute(1, 2, 0).int() - torch.from_numpy(gradient).int()
    assert difference.abs().float().mean() <= tolerance


def test_memory_layout_is_the_fast_one():
    assert decode_image(encode(noise())).stride() == (1, 210, 3)
    assert tile_image(decode_image(encode(noise(64, 64))), 64).is_contiguous()


def test_grey_palette_bilevel_and_cmyk_become_rgb():
    grey = noise(channels=1)[..., 0]
    assert torch.equal(decode_image(encode(grey)), torch.from_numpy(grey).expand(3, -1, -1))
    bits = Image.fromarray(grey > 127)
    assert torch.equal(decode_image(encode(bits)), torch.from_numpy((grey > 127) * np.uint8(255)).expand(3, -1, -1))
    palette = Image.fromarray(noise()).quantize(16)
    expected = torch.from_numpy(np.array(palette.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode_image(encode(palette)), expected)
    assert torch.equal(decode_image(encode(palette, "GIF")), expected)
    red = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))[:, 4, 4]
    assert (red - torch.tensor([255, 0, 0])).abs().max() <= 3


def test_alpha_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = 200, 0, 100
    rgba[0, :, 3] = 0, 255, 51  # a fifth
    # a fifth of (200, 0, 100) and four fifths of white: (244, 204, 224)
    expected = torch.tensor([[255, 255, 255], [200, 0, 100], [244, 204, 224]]).T
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert torch.equal(decode_image(encode(rgba, kind, **options))[:, 0].int(), expected.int()), kind
    la = decode_image(encode(Image.fromarray(rgba).convert("LA")))
    assert la[:, 0, 0].tolist() == [255, 255, 255]


def test_transparent_colours_without_an_alpha_channel():
    palette = Image.new("P", (2, 1))
    palette.putpalette([17, 34, 51, 68, 85, 102])
    palette.putpixel((1, 0), 1)
    assert decode_image(encode(palette, transparency=0))[:, 0].T.tolist() == [[255, 255, 255], [68, 85, 102]]
    half = decode_image(encode(palette, transparency=bytes([255, 0])))[:, 0].T.tolist()
    assert half == [[17, 34, 51], [255, 255, 255]]
    rgb = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode_image(encode(rgb, transparency=(1, 2, 3))).flatten().tolist() == [255, 255, 255]
    assert decode_image(encode(rgb, transparency=(3, 2, 1))).flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_upper_byte(kind):
    values = np.array([[0, 255, 256, 40000, 65535]], dtype=np.uint16)
    image = decode_image(encode(values, kind))
    assert image.shape == (3, 1, 5)
    assert image[1, 0].tolist() == [0, 0, 1, 156, 255]  # 40000 // 256 = 156; Pillow's convert clips to 255


def test_16_bit_rgb_png():
    row = struct.pack(">6H", 0, 256, 40000, 65535, 511, 512)  # two pixels
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" + row)) + png_chunk(b"IEND", b"")
    assert decode_image(b"\x89PNG\r\n\x1a\n" + chunks)[:, 0].T.tolist() == [[0, 1, 156], [255, 1, 2]]


# where the red corner of the upright picture lies in a stored picture with each orientation
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind, orientation):
    """Upright: 32 x 16, red at the top left, green at the top right."""
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    upright.paste("lime", (24, 0, 32, 8))
    store = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose undoing each orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(store[orientation]))
    assert np.array(stored)[CORNERS[orientation]].tolist() == [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, kind, exif=exif)
    image = decode_image(data)
    assert image.shape == (3, 16, 32)
    assert image_size(data) == (32, 16)
    assert image[0, 3, 3] > 200
    assert image[1, 3, 3] < 60
    assert image[0, 3, 28] < 60
    assert image[1, 3, 28] > 200
    assert image[:, 12, 16].min() > 200


def test_damaged_exif_does_not_cost_the_picture():
    data = encode(noise(), exif=b"Exif\0\0nonsense, not TIFF at all")
    assert decode_image(data).shape == (3, 50, 70)
    assert image_size(data) == (70, 50)


@pytest.mark.parametrize("read", [decode_image, image_size])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"^image is empty \(0 bytes\)$"),
        (
            b"<html>404 not found</html>",
            r"image of 26 bytes beginning with b'<html>40' is no picture in PNG, JPEG, WEBP",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            r"beginning with b'%!PS-Ado' is no picture",
        ),
        (encode(noise())[:20], r"image of 20 bytes .* or is cut inside its header"),
    ],
)
def test_what_is_no_picture(read, data, message):
    with pytest.raises(DataError, match=message):
        read(data)


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; its pixels are never there."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_size_is_refused_before_decoding(monkeypatch):
    def no_pixels(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", no_pixels)
    with pytest.raises(
        DataError, match=r"claims 12000 x 12000 = 144000000 pixels, the limit is 50000000; shrink .* max_pix"
    ):
        decode_image(bomb_png(12000, 12000))
    with pytest.raises(DataError, match=r"^image is too large: Image size \(400000000 pixels\) exceeds limit"):
        decode_image(bomb_png(20000, 20000))
    assert image_size(bomb_png(12000, 12000)) == (12000, 12000)
    with pytest.raises(DataError, match=r"claims 70 x 50 = 3500 pixels, the limit is 3499"):
        decode_image(encode(noise(), "JPEG"), max_pixels=3499)


def test_size_limit_is_inclusive():
    assert decode_image(encode(noise()), max_pixels=3500).shape == (3, 50, 70)


KINDS = {
    "png": encode(noise()),
    "palette": encode(Image.fromarray(noise()).quantize(16)),
    "jpeg": encode(noise(), "JPEG"),
    "progressive": encode(noise(), "JPEG", progressive=True),
    "webp": encode(noise(), "WEBP"),
    "lossless webp": encode(noise(), "WEBP", lossless=True),
    "gif": encode(noise(), "GIF"),
    "bmp": encode(noise(), "BMP"),
    "tiff": encode(noise(), "TIFF"),
    "ppm": encode(noise(), "PPM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_never_gives_half_a_picture(kind):
    """At every cut: a DataError, or (where only an end mark is missing) exactly the whole picture."""
    data = KINDS[kind]
    whole, whole_pictures = decode_image(data), 0
    cuts = sorted({*range(0, len(data), max(1, len(data) // 80)), *range(len(data) - 16, len(data))})
    for cut in cuts:
        try:
            image = decode_image(data[:cut])
        except DataError:
            continue
        assert torch.equal(image, whole), cut
        whole_pictures += 1
    assert whole_pictures <= 16  # only within the last bytes


@pytest.mark.parametrize(
    ("kind", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("progressive", "JPEG"), ("gif", "GIF"), ("bmp", "BMP")]
)
def test_cut_message(kind, name):
    half = KINDS[kind][: len(KINDS[kind]) // 2]
    with pytest.raises(
        DataError, match=rf"^{name} image of {len(half)} bytes is truncated or damaged \(\w+: .+\)$"
    ) as caught:
        decode_image(half)
    assert caught.value.__cause__ is not None


def test_damaged_png_is_seen_by_its_checksum():
    """A zeroed block of 64 bytes; without the check a flat picture came out in wrong colours 67 times of 88."""
    flat = np.full((90, 120, 3), 200, np.uint8)
    flat[20:40, 30:60] = 255, 0, 0
    data = encode(flat)
    body = data.index(b"IDAT") + 4
    end = data.rindex(b"IEND") - 8
    for start in range(body, end - 64, 5):
        damaged = data[:start] + bytes(64) + data[start + 64 :]
        with pytest.raises(
            DataError, match=rf"^PNG image of {len(data)} bytes is damaged: wrong checksum of bytes \d+ to"
        ):
            decode_image(damaged)


def test_bytes_after_the_end_are_harmless():
    for kind in ("png", "jpeg", "gif"):
        assert torch.equal(decode_image(KINDS[kind] + b"\0" * 700), decode_image(KINDS[kind])), kind
    wrong_checksum = png_chunk(b"IDAT", b"pixels of nothing")[:-4] + b"0000"
    assert torch.equal(decode_image(KINDS["png"] + wrong_checksum), decode_image(KINDS["png"]))


def test_mpo_and_an_unknown_orientation():
    exif = Image.Exif()
    exif[0x0112] = 9
    second = Image.fromarray(noise(seed=1))
    data = encode(Image.fromarray(noise()), "MPO", save_all=True, append_images=[second], exif=exif)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode_image(data).shape == (3, 50, 70)
    assert image_size(data) == (70, 50)


def test_a_pillow_without_some_format(monkeypatch):
    monkeypatch.setattr(images, "_FORMATS", ("NOT BUILT IN", "PNG"))
    images._formats.cache_clear()
    try:
        assert decode_image(KINDS["png"]).shape == (3, 50, 70)
    finally:
        images._formats.cache_clear()


@pytest.mark.parametrize(
    ("array", "mode"), [(np.full((2, 2), 70000, np.int32), "I"), (np.full((2, 2), 0.5, np.float32), "F")]
)
def test_32_bit_pixels_are_refused(array, mode):
    with pytest.raises(DataError, match=rf"^TIFF image has pixels of 32 bits \(mode {mode}\); store 8 or 16 bits"):
        decode_image(encode(array, "TIFF"))


def test_pillow_told_to_accept_cut_files(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES is True and would hide cut pictures; set it to False"):
        decode_image(KINDS["jpeg"])
