"""Small generated data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path):
    """Write `<root>/<class>/<n>.png` with as many images as wanted and return the root."""

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
