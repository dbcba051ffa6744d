"""Files of equal content in two splits are named before the training."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vimamba.data import ImageFolder, MaskFolder
from vimamba.data.twins import describe_twins


@pytest.fixture
def photos(tmp_path):
    """Uncompressed images, all of one size in bytes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.bmp")
    return tmp_path


def test_copies_are_named_with_their_splits(photos):
    assert not any("content" in note for note in ImageFolder(str(photos)).notes())
    shutil.copy(photos / "train" / "a" / "3.bmp", photos / "test" / "a" / "copy.bmp")
    shutil.copy(photos / "train" / "b" / "0.bmp", photos / "val" / "b" / "1.bmp")
    shutil.copy(photos / "train" / "b" / "0.bmp", photos / "train" / "b" / "again.bmp")
    (note,) = (n for n in ImageFolder(str(photos)).notes() if "content" in n)
    assert "train/a/3.bmp (train) and test/a/copy.bmp (test)" in note
    assert "train/b/0.bmp (train) and val/b/1.bmp (val);" in note


def test_files_that_differ_in_one_byte_are_no_copies(photos):
    copy = photos / "test" / "a" / "copy.bmp"
    # away from the parts that are compared first
    values = bytearray((photos / "train" / "a" / "3.bmp").read_bytes() * 8)
    (photos / "train" / "a" / "3.bmp").write_bytes(values)
    values[40_000] ^= 1
    copy.write_bytes(values)
    splits = ImageFolder(str(photos)).catalogue.splits
    assert describe_twins(splits, photos) == []
    values[40_000] ^= 1
    copy.write_bytes(values)
    assert "copy.bmp (test)" in describe_twins(splits, photos)[0]


def test_of_too_many_files_it_is_said_that_not_all_were_compared(photos):
    splits = ImageFolder(str(photos)).catalogue.splits
    assert describe_twins(splits, photos, budget=-1) == [
        "20 files of equal size in different splits: too many to compare all"
    ]


def test_images_with_masks_are_compared_without_their_masks(tmp_path):
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (tmp_path / split / name).mkdir(parents=True)
        for number in range(2):
            color = (9 * number + 90 * (split == "val"), 0, 0)
            Image.new("RGB", (8, 8), color).save(tmp_path / split / "images" / f"{number}.png")
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(
                tmp_path / split / "masks" / f"{number}.png"
            )
    assert not any("content" in note for note in MaskFolder(str(tmp_path)).notes())
    shutil.copy(tmp_path / "train/images/1.png", tmp_path / "val/images/0.png")
    (note,) = (n for n in MaskFolder(str(tmp_path)).notes() if "content" in n)
    assert "train/images/1.png (train) and val/images/0.png (val)" in note
