"""A look at the images before training: can they be read, how large and how bright are they?"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vimamba.data.classification import ClassificationData
from vimamba.data.samples import Samples

BUDGET = 20.0  # seconds


@dataclass(frozen=True)
class Inspection:
    """What was seen.

    Attributes:
        total: Images in all splits.
        seen: Images that were opened; fewer than `total` only if time ran out.
        smallest: Smallest height and width.
        largest: Largest height and width.
        mean: Per-channel mean in [0, 1].
        std: Per-channel standard deviation in [0, 1].
    """

    total: int
    seen: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def in_turns(size: int) -> Iterator[int]:
    """0 .. size - 1, spread evenly from the start: every 64th image, then the ones between."""
    for start in range(min(64, size)):
        yield from range(start, size, 64)


def inspect_images(data: ClassificationData, budget: float = BUDGET) -> Inspection:
    """Decode every image, or as many as the budget allows, evenly spread.

    Args:
        data: The data set.
        budget: Seconds.

    Raises:
        DataError: An image cannot be read; the text names it.
    """
    splits: list[Samples] = list(data.catalogue.splits.values())
    start, sizes = time.monotonic(), []
    weight, total, squares = 0, np.zeros(data.in_chans), np.zeros(data.in_chans)
    for number, samples in enumerate(splits, 1):
        end = start + budget * number / len(splits)
        for index in in_turns(len(samples)):
            if time.monotonic() > end:
                break
            pixels = samples.image(index, data.in_chans).astype(np.float32) / 255
            sizes.append(pixels.shape[:2])
            weight += 1
            total += pixels.mean((0, 1), dtype=np.float64)
            squares += np.square(pixels).mean((0, 1), dtype=np.float64)
    mean = total / weight
    std = np.sqrt(np.maximum(squares / weight - mean**2, 0))
    heights, widths = np.asarray(sizes).T
    return Inspection(
        total=sum(len(samples) for samples in splits),
        seen=weight,
        smallest=(int(heights.min()), int(widths.min())),
        largest=(int(heights.max()), int(widths.max())),
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
    )
