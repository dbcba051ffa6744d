"""Small pairs of images of two dates with change labels."""

import numpy as np
from PIL import Image


def write_pairs(root, count=10, side=32, *, split=""):
    """Squares that appear on noise, with a change in brightness."""
    rng = np.random.default_rng(0)
    for i in range(count):
        before = rng.integers(60, 120, (side, side, 3))
        after = np.roll(before, 1, axis=0) + 20
        truth = np.zeros((side, side), dtype=np.uint8)
        y, x = rng.integers(2, side - 12, 2)
        after[y : y + 10, x : x + 10], truth[y : y + 10, x : x + 10] = 235, 255
        for folder, image in (("A", before), ("B", after), ("label", truth)):
            path = root / split / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(path)
    return root
