"""Like pictures: found by their thumbnails, told apart by their details, among few and among many."""

import numpy as np
from curation_data import encoded, image, run, text, vqa, write_jsonl
from PIL import Image

from bluelm_lightning.data.curation import Decontaminate, NearDuplicates, PictureFilter
from bluelm_lightning.data.curation.near_pictures import PictureGrid
from bluelm_lightning.data.curation.pictures import PictureCode, open_picture, picture_code, same_details


def test_the_grid_misses_no_pair_of_like_pictures():
    draws = np.random.default_rng(0)
    seen = [picture_code(encoded(image(n % 40))).coarse for n in range(80)]  # each twice
    codes = np.clip(np.array(seen).astype(int) + draws.integers(-9, 10, (80, 1)), 0, 255).astype(np.uint8)
    apart = np.sqrt(((codes[:, None].astype(float) - codes[None]) ** 2).mean(2))
    wanted = {(i, j) for i, j in zip(*np.nonzero(apart <= 5)) if i < j}
    fine = np.zeros((80, 4096), np.uint8)  # no details: the coarse codes decide
    grid = PictureGrid(codes, fine.__getitem__, 5.0)
    found = [pair for chunk in grid.pairs() for pair in zip(*(side.tolist() for side in chunk))]
    assert 5 < len(wanted) < 40
    assert sorted(found) == sorted(wanted)
    for number in range(80):
        assert {other for other, _ in grid.near(PictureCode(codes[number], fine[0]))} == set(
            np.flatnonzero(apart[number] <= 5).tolist()
        )


def test_crowded_cells_give_the_pairs_that_a_comparison_of_all_gives():
    """Pages of one layout: more than a block of them in few cells, every eighth a copy with noise of another."""
    draws = np.random.default_rng(1)
    base, fine = draws.integers(180, 250, (1, 768)), draws.integers(0, 256, (400, 4096))
    codes = np.clip(base + draws.normal(0, 2.5, (400, 768)), 0, 255).astype(np.uint8)
    codes[::8], fine[::8] = codes[1::8], fine[1::8] + draws.integers(-9, 10, fine[1::8].shape)
    fine = np.clip(fine, 0, 255).astype(np.uint8)
    left, right = np.triu_indices(400, 1)
    apart = np.sqrt(((codes[left].astype(float) - codes[right]) ** 2).mean(1))
    left, right = left[apart <= 3.5], right[apart <= 3.5]
    alike = same_details(fine[left], fine[right])
    wanted = sorted(zip(left[alike].tolist(), right[alike].tolist()))
    found = [pair for one, other in PictureGrid(codes, fine.__getitem__, 3.5).pairs() for pair in zip(one, other)]
    assert 1000 < len(left) < 79_000
    assert len(wanted) >= 50
    assert sorted((int(i), int(j)) for i, j in found) == wanted


def test_pages_of_print_are_told_apart_by_their_details(tmp_path):
    """A thumbnail of 16 x 16 has them all within 5 levels."""
    records = []
    for number in range(40):
        page(number).save(tmp_path / f"{number}.png")
        page(number).resize((200, 300)).save(tmp_path / f"{number}.jpg", quality=75)
        records += [{"id": f"{number}", "image": f"{number}.png", "text": "<image>"}]
    records += [{"id": f"copy of {number}", "image": f"{number}.jpg", "text": "<image>"} for number in range(40)]
    left, dropped = run(tmp_path / "near", _at(tmp_path, records), NearDuplicates())
    assert list(left) == [f"{number}" for number in range(40)]
    assert all(name == f"copy of {line['match']['id']}" for name, line in dropped.items())
    test = write_jsonl(tmp_path / "test.jsonl", [vqa("What is it?", "a page", "7.png", id="t")])
    _, dropped = run(tmp_path / "clean", _at(tmp_path, records), Decontaminate([test]))
    assert sorted(dropped) == ["7", "copy of 7"]


def page(seed: int) -> Image.Image:
    """Lines of black words on white."""
    draws, sheet = np.random.default_rng(seed), np.full((600, 400), 255, np.uint8)
    for top in range(40, 560, 16):
        left = 30
        while left < 350:
            width = int(draws.integers(8, 40))
            sheet[top : top + 9, left : left + width] = 255 * (draws.random((9, width)) < 0.5)
            left += width + 6
    return Image.fromarray(sheet)


def _at(folder, records):
    return [{**record, "image": str(folder / record["image"])} for record in records]


def test_many_questions_on_one_picture_meet_their_copies(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image(0)))
    (tmp_path / "a.jpg").write_bytes(encoded(image(0), "JPEG", quality=80))
    asked = [f"Is shape {number} of the picture a circle, please?" for number in range(90)]
    records = [vqa(text, "yes", name, id=f"{name} {text}") for name in ("a.png", "a.jpg") for text in asked]
    left, dropped = run(tmp_path, records, NearDuplicates())
    assert list(left) == [f"a.png {text}" for text in asked]
    assert len(dropped) == 90


def test_16_bits_of_grey_are_not_clipped(tmp_path):
    ramp = np.linspace(2000, 52000, 64 * 64).astype(np.uint16).reshape(64, 64)
    for name, values in (("a", ramp), ("b", ramp[::-1].copy())):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        records = [vqa(f"{text(0)}?", "yes", str(tmp_path / f"{name}.png"), id=name) for name in "ab"]
    seen = np.asarray(open_picture((tmp_path / "a.png").read_bytes()))
    assert (int(seen.min()), int(seen.max())) == (2000 >> 8, 52000 >> 8)
    left, _ = run(tmp_path, records, PictureFilter(), NearDuplicates())
    assert list(left) == ["a", "b"]
