"""Inspects the images before training: readability, sizes and values."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vimamba.data.band_sample import PERCENTILES
from vimamba.data.base import ImageData
from vimamba.data.items import Item, StoredImage
from vimamba.data.pixels import wanted_bands
from vimamba.data.preprocessing import EIGHT_BITS

BUDGET = 20.0  # seconds
MOST_BANDS = 16


@dataclass(frozen=True)
class Inspection:
    """Results of the inspection.

    Attributes:
        total: Images in all splits.
        seen: Number of images opened; fewer than `total` only if time ran out.
        smallest: Smallest height and width.
        largest: Largest height and width.
        mean: Per-channel mean in [0, 1].
        std: Per-channel standard deviation in [0, 1].
        unknown: Fraction of invalid values: nodata, or not finite.
        eight_bits: Number of 8-bit images.
        transparent: Images whose transparency is dropped.
        palettes: Images with palettes, which become colors.
        paged: Images with additional pages, which are dropped.
    """

    total: int
    seen: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unknown: float = 0.0
    eight_bits: int = 0
    transparent: int = 0
    palettes: int = 0
    paged: int = 0


def in_turns(size: int) -> Iterator[int]:
    """0 .. size - 1, spread evenly from the start: every 64th image, then the ones between."""
    for start in range(min(64, size)):
        yield from range(start, size, 64)


def spread_images(items: Sequence[Item], end: float) -> Iterator[StoredImage]:
    """Images of some items, evenly spread, until the time `end` of `time.monotonic`."""
    for index in in_turns(len(items)):
        if time.monotonic() > end:
            return
        yield from items[index].images()


def inspect_images(data: ImageData, budget: float = BUDGET) -> Inspection:
    """Decode every image, or as many as the budget allows, evenly spread.

    Args:
        data: The data set.
        budget: Seconds.

    Raises:
        DataError: An image cannot be read; the message names it.
    """
    splits, prepare = list(data.catalogue.splits.values()), data.preprocessing
    wanted = wanted_bands(prepare.in_chans, prepare.bands)
    start, sizes = time.monotonic(), []
    # per channel: images, sums of their means and mean squares
    weight, total, squares = (np.zeros(data.in_chans) for _ in range(3))
    unknown, eight_bits, transparent, palettes, paged = 0.0, 0, 0, 0, 0
    for number, items in enumerate(splits, 1):
        for image in spread_images(items, start + budget * number / len(splits)):
            known = prepare.known(image)
            sizes.append(known.shape[:2])
            eight_bits += known.dtype in EIGHT_BITS
            pixels = known / np.float32(255) if known.dtype in EIGHT_BITS else known
            valid = np.isfinite(pixels).mean((0, 1))
            unknown += 1 - float(valid.mean())
            weight += valid > 0
            parts = np.maximum(valid, 1e-12)
            total += np.nansum(pixels, (0, 1), dtype=np.float64) / (pixels[..., 0].size * parts)
            squares += np.nansum(np.square(pixels), (0, 1), dtype=np.float64) / (
                pixels[..., 0].size * parts
            )
            if (head := image.head()) is not None:
                transparent += head.transparent and wanted != head.bands + 1
                palettes += head.palette
                paged += head.pages > 1 and wanted != head.pages
    count = np.maximum(weight, 1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    heights, widths = np.asarray(sizes).T
    return Inspection(
        total=sum(len(item.images()) for items in splits for item in items),
        seen=len(sizes),
        smallest=(int(heights.min()), int(widths.min())),
        largest=(int(heights.max()), int(widths.max())),
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
        unknown=unknown / len(sizes),
        eight_bits=eight_bits,
        transparent=transparent,
        palettes=palettes,
        paged=paged,
    )


def describe_pixels(data: ImageData, seen: Inspection) -> list[str]:
    """Lines on the images' values that a user should know; none for ordinary photographs.

    Args:
        data: The data set.
        seen: The result of `inspect_images`.
    """
    lines: list[str] = []
    if data.intensity.is_open and (sample := data.band_sample).ranges:
        low, high = PERCENTILES
        lines.append(
            f"values are scaled to [0, 1] by ranges found in {sample.images} training images "
            f"(percentiles {low:g} and {high:g}; --data.intensity overrides them):"
        )
        for number, (ends, reach) in enumerate(
            zip(sample.ranges[:MOST_BANDS], sample.reach, strict=False)
        ):
            whole = f"all values: {reach[0]:g} to {reach[1]:g}"
            lines.append(f"  channel {number}: {ends[0]:g} to {ends[1]:g}; {whole}")
        if (more := len(sample.ranges) - MOST_BANDS) > 0:
            lines.append(f"  and {more} more in config.yaml")
    if not data.planned.is_complete and data.band_sample.is_measured:
        mean, std = show(data.mean), show(data.std)
        images = data.band_sample.images
        lines.append(f"normalized with mean {mean}, std {std}, those of {images} training images")
    of = f"of {seen.seen} images"
    if seen.unknown > 0:
        becomes = "the mean of their channel" if data.intensity.zscore else "0"
        lines.append(f"invalid values (nodata, not finite): {seen.unknown:.2%}; become {becomes}")
    if 0 < seen.eight_bits < seen.seen:
        lines.append(
            f"8-bit images among deeper ones: {seen.eight_bits} {of}; for them 255 becomes 1"
        )
    for count, text in (
        (seen.transparent, "transparency dropped"),
        (seen.palettes, "palettes converted to colors"),
        (seen.paged, "additional pages dropped"),
    ):
        if count:
            lines.append(f"{text}: {count} {of}")
    return lines


def show(values: Sequence[float]) -> str:
    """Numbers with a few digits; a long list is cut off."""
    more = ", …" if len(values) > MOST_BANDS else ""
    return ", ".join(f"{value:.3g}" for value in values[:MOST_BANDS]) + more
