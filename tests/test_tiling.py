"""Grid choice by hand-made arithmetic, tile contents by colour, memory by measurement."""

import random
import subprocess
import sys

import pytest
import torch

from bluelm_lightning.data.tiling import PAD_VALUE, Grid, choose_grid, count_tiles, fit_size, tile_image
from bluelm_lightning.errors import ConfigError, DataError

S = 378
GRIDS = [
    # width, height, (rows, cols)
    (1512, 1512, (4, 4)),  # fills 4 x 4 exactly: Rw = 0, nothing beats it
    (3024, 756, (1, 4)),  # 4:1; resized to 1512 x 378 on any grid of 4 columns, and one row wastes nothing
    (756, 3024, (4, 1)),
    (1512, 378, (1, 4)),
    (1134, 756, (2, 3)),
    (378, 378, (1, 1)),
    (390, 390, (1, 1)),  # 1 x 1 shows 142884 of 152100 pixels, 6 % less: cheaper wins
    (400, 400, (2, 2)),  # 1 x 1 would show 142884 of 160000, 10.7 % less
    (1200, 1200, (4, 4)),  # 3 x 3 would show 1285956 of 1440000, 10.7 % less
    (1190, 1190, (3, 3)),  # 3 x 3 shows 1285956 of 1416100, 9.2 % less
    (64, 64, (1, 1)),  # small pictures are whole in one tile: enlarging shows nothing new
    (300, 200, (1, 1)),
    (1, 1, (1, 1)),
    (1, 20000, (4, 1)),  # 1 x 1512; three rows would lose a quarter
    (20000, 1, (1, 4)),
]


@pytest.mark.parametrize(("width", "height", "grid"), GRIDS)
def test_grid_by_hand(width, height, grid):
    assert choose_grid(width, height, S) == Grid(*grid)


def test_grid_bounds():
    assert choose_grid(1512, 1512, S, max_grid=2) == (2, 2)
    # at most 6 tiles: 2 x 3 and 3 x 2 show 756 x 756 as 2 x 2 does, which wastes less
    assert choose_grid(1512, 1512, S, max_tiles=6) == (2, 2)
    assert choose_grid(3024, 1512, S, max_tiles=2) == (1, 2)
    assert choose_grid(1512, 1512, S, max_tiles=1) == (1, 1)


def test_alpha_zero_wants_every_pixel_and_larger_alpha_saves_tiles():
    assert choose_grid(390, 390, S, alpha=0.0) == (4, 4)  # Re_best - Re < 0 never holds: the first full grid stays
    assert choose_grid(400, 400, S, alpha=0.11) == (1, 1)


def test_exactly_alpha_less_is_not_less_than_alpha():
    # S = 9, 10 x 9: 1 x 1 shows 9 x 8 = 72 of 90, 1 x 2 shows 10 x 9; a step of exactly 20 % is refused at 0.2
    assert choose_grid(10, 9, 9, alpha=0.2) == (1, 2)
    assert choose_grid(10, 9, 9, alpha=0.201) == (1, 1)


def test_a_step_down_must_waste_less():
    # 398 x 112, S = 64. 1 x 4: 227 x 64 shown, 16384 - 14528 = 1856 wasted. 1 x 3: 192 x 54 shown, 28.6 % less, which
    # alpha = 0.3 allows, but 12288 - 10368 = 1920 wasted. At alpha = 0.1 no size in 300000 depended on this.
    assert choose_grid(398, 112, 64, alpha=0.3) == (1, 4)


def test_steps_down_keep_most_pixels():
    """The figure in choose_grid's docstring: worst case 0.817 of the pixels that some grid would show."""
    rng, worst = random.Random(0), 1.0
    grids = [Grid(r, c) for r in range(1, 5) for c in range(1, 5)]
    for _ in range(3000):
        width, height = rng.randint(20, 4000), rng.randint(20, 4000)
        shown = {
            g: min(width * height, fit_size(width, height, g, S)[0] * fit_size(width, height, g, S)[1]) for g in grids
        }
        worst = min(worst, shown[choose_grid(width, height, S)] / max(shown.values()))
    assert 0.81 < worst < 0.9


@pytest.mark.parametrize(
    ("width", "height", "grid", "size"),
    [
        (64, 64, (1, 1), (64, 64)),
        (128, 32, (1, 1), (64, 16)),
        (32, 128, (1, 1), (16, 64)),
        (30, 20, (1, 1), (64, 43)),  # 42.67 rounds to 43
        (100, 50, (2, 2), (128, 64)),
        (1, 20000, (1, 1), (1, 64)),  # 0.003 px clamped to 1
        (20000, 1, (1, 4), (256, 1)),
        (1, 1, (1, 1), (64, 64)),
        (64, 65, (1, 1), (63, 64)),
    ],
)
def test_fit_size(width, height, grid, size):
    assert fit_size(width, height, Grid(*grid), 64) == size


def test_tiles_are_row_major_with_the_thumbnail_first():
    image = torch.zeros(3, 128, 192, dtype=torch.uint8)  # 2 rows x 3 columns of 64 px, one colour each
    for i in range(6):
        row, col = divmod(i, 3)
        image[:, row * 64 : row * 64 + 64, col * 64 : col * 64 + 64] = torch.tensor([40 * i, 10, 255 - 40 * i])[
            :, None, None
        ]
    tiles = tile_image(image, 64)
    assert tiles.shape == (7, 3, 64, 64)
    assert tiles.dtype == torch.uint8
    assert tiles.is_contiguous()
    for i in range(6):
        assert tiles[1 + i].flatten(1).unique(dim=1).T.tolist() == [[40 * i, 10, 255 - 40 * i]]
    # thumbnail: 192 x 128 -> 64 x 43, 10 rows of padding above, 11 below
    assert (tiles[0][:, :10] == PAD_VALUE).all()
    assert (tiles[0][:, 53:] == PAD_VALUE).all()
    assert tiles[0][:, 20, 5].tolist() == [0, 10, 255]
    assert tiles[0][:, 42, 58].tolist() == [200, 10, 55]
    without = tile_image(image, 64, thumbnail=False)
    assert torch.equal(without, tiles[1:])


def test_one_tile_has_no_thumbnail_and_exact_pictures_are_not_resized():
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert torch.equal(tile_image(image, 64), image[None])
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    tiles = tile_image(channels_last, 64)
    assert torch.equal(tiles, image[None])
    assert tiles.is_contiguous()


def test_padding_is_centred_and_aspect_kept():
    image = torch.full((3, 16, 64), 200, dtype=torch.uint8)
    tile = tile_image(image, 64, pad_value=9)[0]
    inside = (tile == 200).all(0)
    assert inside.sum() == 16 * 64
    assert PAD_VALUE == 127
    assert inside[24:40].all()
    assert (tile[:, :24] == 9).all()
    assert (tile[:, 40:] == 9).all()
    tall = tile_image(image.transpose(1, 2), 64, pad_value=9)[0]
    assert torch.equal(tall, tile.transpose(1, 2))


def test_a_circle_stays_a_circle():
    """96 x 48 picture with a disc of radius 20 on one tile: 64 x 32, so its width and height both become 27."""
    y, x = torch.meshgrid(torch.arange(48), torch.arange(96), indexing="ij")
    disc = ((x - 47.5) ** 2 + (y - 23.5) ** 2 <= 400).to(torch.uint8) * 255
    tile = tile_image(disc.expand(3, -1, -1), 64, max_grid=1, pad_value=0)[0, 0] > 127
    wide, high = int(tile.any(0).sum()), int(tile.any(1).sum())
    assert abs(wide - 27) <= 1
    assert wide == high


def test_counts_without_pixels():
    rng = random.Random(1)
    sizes = [(1, 1), (1, 300), (300, 1), *((rng.randint(1, 300), rng.randint(1, 300)) for _ in range(150))]
    for width, height in sizes:
        options = {
            "max_grid": rng.randint(1, 5),
            "thumbnail": rng.random() < 0.5,
            "alpha": rng.choice([0.0, 0.1, 0.3]),
            "max_tiles": rng.choice([None, 1, 3, 9]),
        }
        tiles = tile_image(torch.zeros(3, height, width, dtype=torch.uint8), 32, **options)
        assert tiles.shape == (count_tiles(width, height, 32, **options), 3, 32, 32), (width, height, options)
    assert count_tiles(1512, 1512, S) == 17
    assert count_tiles(1512, 1512, S, thumbnail=False) == 16
    assert count_tiles(64, 64, S) == 1


def test_memory_of_thin_pictures():
    """1 x 20000 took 7.8 GB with shortest-edge resizing; here tiles of 378 px cost some megabytes."""
    code = (
        "import torch\n"
        "from pathlib import Path\n"
        "from bluelm_lightning.data.tiling import tile_image\n"
        "def peak():\n"  # ru_maxrss would count what the parent held when it forked
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1024\n"
        "tile_image(torch.zeros(3, 40, 30, dtype=torch.uint8), 378)\n"  # imports torchvision
        "before = peak()\n"
        "for shape in ((3, 20000, 1), (3, 1, 20000)):\n"
        "    tiles = tile_image(torch.zeros(shape, dtype=torch.uint8), 378)\n"
        "    assert tiles.shape == (5, 3, 378, 378), tiles.shape\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100  # MB; measured 5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: choose_grid(0, 5, 64), DataError, "picture of 0 x 5 pixels; both sides need at least 1"),
        (lambda: choose_grid(5, 5, 0), ConfigError, "tile_size: 0 pixels make no tile"),
        (
            lambda: choose_grid(5, 5, 64, max_grid=0),
            ConfigError,
            "max_grid: 0 tiles a side leave no grid; use at least 1",
        ),
        (lambda: choose_grid(5, 5, 64, max_tiles=0), ConfigError, "max_tiles: 0 tiles leave no grid; use at least 1"),
        (lambda: choose_grid(5, 5, 64, alpha=1.0), ConfigError, r"alpha: 1.0 is not a share of pixels; .*\[0, 1\)"),
        (lambda: tile_image(torch.zeros(3, 5, 5), 64), DataError, r"torch.float32\[3, 5, 5\], not uint8\[3, H, W\]"),
        (lambda: tile_image(torch.zeros(1, 5, 5, dtype=torch.uint8), 64), DataError, r"torch.uint8\[1, 5, 5\], not"),
        (lambda: tile_image(torch.zeros(3, 0, 5, dtype=torch.uint8), 64), DataError, "picture of 5 x 0 pixels"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
