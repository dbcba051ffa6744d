"""The base of all data sets supports items of several images, which none of these data sets has."""

from dataclasses import dataclass

import numpy as np
import pytest
import tifffile
import torch

from vimamba.data import Catalogue, Preprocessing
from vimamba.data.base import ImageData
from vimamba.data.inspection import inspect_images
from vimamba.data.items import FileImage
from vimamba.data.splits import write_split


@dataclass(frozen=True)
class Change:
    """Two images of one location."""

    before: FileImage
    after: FileImage
    group: str = ""

    @property
    def name(self):
        return self.before.name

    def images(self):
        return self.before, self.after

    def target_text(self, class_names):
        return self.after.name


class Changes(ImageData):
    def read(self):
        files = sorted((self.root / "before").iterdir())
        items = tuple(
            Change(FileImage(path, self.root), FileImage(self.root / "after" / path.name))
            for path in files
        )
        return Catalogue(self.divide(items), drawn=True)

    def plan(self):
        return Preprocessing(
            (8, 12), self.in_chans, self.bands, "squash", None, "bilinear", self.intensity,
            self.given_mean, self.given_std,
        )  # fmt: skip

    def dataset(self, split, *, augmented=False):
        return [
            tuple(self.preprocessing.image(image) for image in item.images())
            for item in self.items(split)
        ]


@pytest.fixture
def changes(tmp_path):
    rng = np.random.default_rng(0)
    for folder, low in (("before", 1000), ("after", 3000)):
        (tmp_path / folder).mkdir()
        for number in range(10):
            pixels = rng.integers(low, low + 1000, (16, 24, 5)).astype(np.uint16)
            options = {"photometric": "minisblack", "planarconfig": "contig"}
            tifffile.imwrite(tmp_path / folder / f"{number}.tif", pixels, **options)
    return Changes(str(tmp_path), workers=0, batch_size=2)


def test_both_images_count_for_the_ranges_and_become_tensors(changes):
    assert changes.in_chans == 5
    low, high = changes.inferred_settings()["intensity.ranges"][0]
    assert low == pytest.approx(1000, abs=30)
    assert high == pytest.approx(4000, abs=30)
    before, after = next(iter(changes.test_dataloader()))
    assert before.shape == after.shape == (2, 5, 8, 12)
    assert torch.all(before.mean((0, 2, 3)) < after.mean((0, 2, 3)))
    assert inspect_images(changes).total == 20


def test_pairs_are_divided_and_written_down_as_one(changes, tmp_path):
    assert {split: len(items) for split, items in changes.catalogue.splits.items()} == {
        "train": 6, "val": 2, "test": 2,
    }  # fmt: skip
    assert changes.class_names == []
    write_split(tmp_path / "split.csv", changes.catalogue.splits, changes.class_names)
    again = Changes(str(changes.root), split_csv=str(tmp_path / "split.csv"))
    for split, items in changes.catalogue.splits.items():
        assert [item.name for item in again.items(split)] == [item.name for item in items]
