"""Small generated data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path):
    """Write `<root>/<class>/<n>.png` with a number of images per class; returns the root."""

    def make(counts: dict[str, int], root: Path | None = None, size=(20, 24)) -> Path:
        root = root or tmp_path / "images"
        rng = np.random.default_rng(0)
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        return root

    return make


@pytest.fixture
def make_pairs(tmp_path):
    """Write `<root>/images/<n>.png` and `<root>/masks/<n>.png`; returns the root.

    The mask of image n holds n % classes in its upper half and 0 below; values can be replaced.
    """

    def make(
        count: int = 8, root: Path | None = None, *, values=(0, 1, 2), size=(20, 24), suffix=".png"
    ) -> Path:
        root = root or tmp_path / "pairs"
        rng = np.random.default_rng(0)
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            mask = np.full(size, values[0], dtype=np.uint8)
            mask[: size[0] // 2] = values[number % len(values)]
            pixels = rng.integers(0, 100, (*size, 3), dtype=np.uint8) + mask[..., None] // 2
            Image.fromarray(pixels).save(root / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / f"{number}{suffix}")
        return root

    return make
