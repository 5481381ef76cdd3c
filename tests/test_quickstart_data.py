"""The quickstart's samples are deterministic; its digits do not leak, add up, and stand where the answer reads them."""

import io
import re
from collections import Counter
from itertools import chain, islice, pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.quickstart import arithmetic, digit_pictures, digits, easy_vqa

SPLITS = ("train", "test")
GENERATORS = {
    "sums": lambda split, seed: digits.digit_sums(split, 8, seed),
    "reading": lambda split, seed: digits.digit_reading(split, 8, seed),
    "questions": lambda split, seed: easy_vqa.questions(split, limit=8, seed=seed),
    "conversations": lambda split, seed: islice(easy_vqa.conversations(split, 4, seed), 8),
    "arithmetic": lambda split, seed: arithmetic.arithmetic(split, 8, seed),
}


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("name", GENERATORS)
def test_same_seed_same_bytes_and_other_seed_other_samples(name):
    first, again, other = (list(GENERATORS[name]("train", seed)) for seed in (3, 3, 4))
    assert first == again
    assert [s.messages or s.text for s in first] != [s.messages or s.text for s in other]
    assert len({s.id for s in first}) == 8
    with pytest.raises(ConfigError, match="'valid' is not one of"):
        list(GENERATORS[name]("valid", 3))


def test_no_scan_is_in_both_splits():
    (train, _, ink), (test, labels, held_out) = map(digit_pictures.scan_split, SPLITS)
    assert (len(train), len(test)) == (1437, 360)
    assert min(Counter(labels).values()) >= 34  # stratified: 10 classes of about 36
    assert not {scan.tobytes() for scan in ink} & {scan.tobytes() for scan in held_out}
    used = {s: set(chain(*(x.meta["scans"] for x in digits.digit_sums(s, 400)))) for s in SPLITS}
    used["train"] |= set(chain(*(x.meta["scans"] for x in digits.digit_reading("train", 200))))
    assert not used["train"] & used["test"]


@pytest.mark.parametrize("num_digits", [1, 4, (2, 8)])
def test_digit_sums_add_up(num_digits):
    samples = list(digits.digit_sums("test", 100, num_digits=num_digits))
    low, high = num_digits if isinstance(num_digits, tuple) else (num_digits, num_digits)
    assert {len(s.meta["digits"]) for s in samples} == set(range(low, high + 1))
    assert ["thinking" in s.messages[1] for s in samples] == [True, False] * 50
    for sample in samples:
        reply, seen = sample.messages[1], sample.meta["digits"]
        assert sample.answer == reply["content"] == str(sum(seen))
        if "thinking" in reply and len(seen) > 1:
            read, steps = reply["thinking"].split(": ")
            assert [int(digit) for digit in read.split()] == seen
            columns = np.array([re.fullmatch(r"(\d+)\+(\d)=(\d+)", step).groups() for step in steps.split()], int).T
            totals = np.cumsum(seen)
            assert columns.tolist() == [totals[:-1].tolist(), seen[1:], totals[1:].tolist()]
    assert all("thinking" not in s.messages[1] for s in digits.digit_sums("test", 4, thinking=False))
    assert digits.sum_trace([7]) == ("7: 7", 7)


def test_slips_are_followed_to_the_end_and_the_reference_is_true():
    assert digits.sum_trace([3, 5, 2, 9], [0, 1, 0]) == ("3 5 2 9: 3+5=8 8+2=11 11+9=20", 20)
    samples = list(digits.digit_sums("train", 400, thinking=True, slip_share=0.12))
    assert all(sample.answer == str(sum(sample.meta["digits"])) for sample in samples)
    said = [int(sample.messages[1]["content"]) for sample in samples]
    assert all(m.messages[1]["thinking"].endswith(f"={total}") for m, total in zip(samples, said))
    slips = sum(total - int(sample.answer) for sample, total in zip(samples, said))
    assert 0.09 < slips / (3 * 400) < 0.15  # 0.12 with a standard error of 0.0094
    whole = list(digits.digit_sums("train", 400, thinking=True))
    assert [s.images for s in whole[:20]] == [s.images for s in samples[:20]]


def test_more_digits_than_a_picture_holds_is_an_error():
    with pytest.raises(ConfigError, match="9 to 9 digits asked, a picture holds 1 to 8"):
        next(digits.digit_sums("test", 1, num_digits=9))
    with pytest.raises(ConfigError, match="5 digits asked, the smallest canvas holds 4"):
        next(digits.digit_reading("test", 1, num_digits=(1, 5), canvases=((64, 64),)))


def test_digit_pictures_are_larger_than_a_tile_and_digits_lie_apart_in_reading_order():
    shapes = {_pixels(s.images[0]).shape for s in digits.digit_sums("train", 200)}
    assert shapes == {(64, 128, 3), (128, 64, 3), (128, 128, 3)}
    for seed in range(500):
        height, width, boxes = digit_pictures._boxes(np.random.default_rng(seed), 1 + seed % 8, digit_pictures.CANVASES)
        assert boxes.min() >= 0
        cover = np.zeros((height, width), int)
        for top, left, size in boxes:
            cover[top : top + size, left : left + size] += 1
        assert cover.sum() == (boxes[:, 2] ** 2).sum()  # inside the canvas
        assert cover.max() == 1
        for (y, x, a), (v, u, b) in pairwise(boxes):  # the next one: further right in its row, or in a row below
            down = v + b / 2 - y - a / 2
            assert down > 16 or (abs(down) <= 9 and u >= x + a)


def test_the_picture_shows_the_digits_that_the_answer_counts():
    labels = load_digits().target
    for sample in digits.digit_reading("test", 50):
        assert sample.text == f"<image>{' '.join(map(str, sample.meta['digits']))}"
        assert sample.meta["digits"] == labels[sample.meta["scans"]].tolist()
    ink = digit_pictures.scan_split("test")[2]
    painted = digit_pictures._paint(np.random.default_rng(7), "test", np.arange(4), digit_pictures.CANVASES)
    picture = 255.0 - _pixels(painted)[:, :, 0]
    boxes = digit_pictures._boxes(np.random.default_rng(7), 4, digit_pictures.CANVASES)[2]
    for scan, (top, left, size) in zip(ink, boxes):
        patch = Image.fromarray(picture[top : top + size, left : left + size]).resize((8, 8), Image.Resampling.BOX)
        assert np.corrcoef(np.asarray(patch).ravel(), scan.ravel())[0, 1] > 0.9  # 0.95 at worst of 800


def test_training_scans_come_bent_and_blended_and_test_scans_as_they_are():
    def ink(split, scan, seed):
        return digit_pictures._ink(np.random.default_rng(seed), split, scan, 28)

    assert (ink("test", 3, 0) == ink("test", 3, 1)).all()
    assert (ink("train", 3, 0) != ink("train", 3, 1)).any()
    images = digit_pictures.scan_split("train")[2]
    alike = []
    for scan in range(200):
        small = Image.fromarray(ink("train", scan, scan)).resize((8, 8), Image.Resampling.BOX)
        alike.append(np.corrcoef(np.asarray(small).ravel(), images[scan].ravel())[0, 1])
    assert min(alike) > 0.5  # worst seen 0.66
    assert 0.8 < np.mean(alike) < 0.97
    assert 0 < digit_pictures.MAX_BLEND < 0.5  # the scan itself always outweighs what it is blended with
