"""Surveys all masks before training: their sizes and their values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.masked.items import MaskedImage
from vimamba.data.masked.labels import LabelTable, color_codes, gray_values

MOST_NAMED = 5

T = TypeVar("T")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Seen:
    """One mask.

    Attributes:
        pixels: Pixels of each value; for color masks, of each color's index.
        size: Height and width.
        trouble: The problem with it, if any.
    """

    pixels: dict[int, int]
    size: tuple[int, int]
    trouble: str = ""


@dataclass(frozen=True)
class Survey:
    """Results of the survey.

    Attributes:
        pixels: Pixels of each mask value in each split.
        images: Images in which each mask value occurs, in each split.
        smallest: Smallest height and width.
        largest: Largest height and width.
        holders: For each value, the first mask that has it.
        kinds: For each set of values that occur together, the first mask that has them.
    """

    pixels: dict[str, dict[int, int]]
    images: dict[str, dict[int, int]]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    holders: dict[int, str]
    kinds: dict[frozenset[int], str]

    def check_values(self, table: LabelTable) -> None:
        """Fail on values that are not classes, naming masks that have them."""
        unknown = {v: name for v, name in self.holders.items() if not table.is_class(v)}
        if unknown:
            raise table.unknown(unknown)

    def ignored(self, table: LabelTable) -> str:
        """Text on the number of ignored pixels; empty if there are none."""
        count, masks, total = (
            sum(numbers.get(table.ignore, 0) for numbers in self.pixels.values()),
            sum(numbers.get(table.ignore, 0) for numbers in self.images.values()),
            sum(sum(numbers.values()) for numbers in self.pixels.values()),
        )
        if not count:
            return ""
        share = f"{count} pixels ({count / total:.1%}) of value {table.ignore} in {masks} masks"
        return f"ignored: {share}, such as {self.holders[table.ignore]}"


class MaskReader:
    """Reads masks and the headers of their images, each once.

    Args:
        colors: Colors of the classes, for color masks.
        workers: Threads to read with.
    """

    def __init__(self, colors: list[list[int]] | None, workers: int) -> None:
        self.codes = None if colors is None else color_codes(np.asarray(colors))
        self.workers = workers
        self._seen: dict[str, Seen] = {}

    def look(self, items: Sequence[MaskedImage]) -> list[Seen]:
        """What the mask of each image holds; images are told apart by their names."""
        new = [item for item in items if item.name not in self._seen]
        found = in_threads(lambda item: look(item, self.codes), new, self.workers)
        self._seen.update(zip((item.name for item in new), found, strict=True))
        return [self._seen[item.name] for item in items]


def survey_masks(splits: Mapping[str, Sequence[MaskedImage]], reader: MaskReader) -> Survey:
    """Survey the masks of all splits.

    Raises:
        DataError: The message names the files that cannot be read or do not fit together.
    """
    pixels: dict[str, dict[int, int]] = {}
    images: dict[str, dict[int, int]] = {}
    holders: dict[int, str] = {}
    kinds: dict[frozenset[int], str] = {}
    sizes: list[tuple[int, int]] = []
    troubles: list[str] = []
    for split, items in splits.items():
        total, count = pixels.setdefault(split, {}), images.setdefault(split, {})
        for item, seen in zip(items, reader.look(items), strict=True):
            if seen.trouble:
                troubles.append(seen.trouble)
                continue
            sizes.append(seen.size)
            kinds.setdefault(frozenset(seen.pixels), item.mask_name)
            for value, number in seen.pixels.items():
                total[value] = total.get(value, 0) + number
                count[value] = count.get(value, 0) + 1
                holders.setdefault(value, item.mask_name)
    if troubles:
        more = len(troubles) - MOST_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        raise DataError("; ".join(troubles[:MOST_NAMED]) + rest)
    heights, widths = np.asarray(sizes).reshape(-1, 2).T
    return Survey(
        pixels,
        images,
        smallest=(int(heights.min(initial=1 << 30)), int(widths.min(initial=1 << 30))),
        largest=(int(heights.max(initial=0)), int(widths.max(initial=0))),
        holders=holders,
        kinds=kinds,
    )


def join_surveys(surveys: Sequence[Survey]) -> Survey:
    """Merge surveys of several data sets."""
    pixels: dict[str, dict[int, int]] = {}
    images: dict[str, dict[int, int]] = {}
    holders: dict[int, str] = {}
    kinds: dict[frozenset[int], str] = {}
    for survey in surveys:
        for total, part in ((pixels, survey.pixels), (images, survey.images)):
            for split, numbers in part.items():
                have = total.setdefault(split, {})
                for value, number in numbers.items():
                    have[value] = have.get(value, 0) + number
        holders = {**survey.holders, **holders}
        kinds = {**survey.kinds, **kinds}
    smallest = min((survey.smallest for survey in surveys), default=(0, 0))
    largest = max((survey.largest for survey in surveys), default=(0, 0))
    return Survey(pixels, images, smallest, largest, holders, kinds)


def in_threads(work: Callable[[ItemT], T], items: Sequence[ItemT], workers: int) -> Iterator[T]:
    """Results in order; with `workers` 0 without threads."""
    if workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, items)


def look(item: MaskedImage, codes: np.ndarray | None) -> Seen:
    """Read one mask and its image's size."""
    try:
        stored, size = item.mask(), item.size()
        stored = stored if codes is not None else gray_values(stored, item.mask_name)
    except DataError as error:
        return Seen({}, (0, 0), str(error))
    if stored.shape[:2] != size:
        return Seen({}, size, wrong_size(item.name, size, stored.shape))
    if codes is not None and stored.ndim == 3:
        found = count_values(color_codes(stored))
        place = {int(code): index for index, code in enumerate(codes)}
        unknown = [code for code in found if code not in place]
        if unknown:
            color = [unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255]
            text = f"mask {item.mask_name} holds the color {color}, which is not a class"
            return Seen({}, size, text)
        return Seen({place[code]: count for code, count in found.items()}, size)
    return Seen(count_values(stored), size)


def values_present(seen: Sequence[Seen]) -> NDArray[np.bool_]:
    """Which of all values each of N masks has, (N, values); none if there is trouble with it."""
    every = sorted(set().union(*(mask.pixels for mask in seen)))
    return np.asarray([[value in mask.pixels for value in every] for mask in seen], dtype=bool)


def count_values(stored: NDArray) -> dict[int, int]:
    """How often each value occurs."""
    if stored.dtype in (np.uint8, np.uint16):
        counts = np.bincount(stored.ravel())  # many times faster than sorting
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(stored, return_counts=True)
    return dict(zip(map(int, found), counts.tolist(), strict=True))


def wrong_size(name: str, image: Sequence[int], mask: Sequence[int]) -> str:
    """Message for an image whose mask has another size."""
    return f"image {name} has {image[0]}x{image[1]} pixels, its mask {mask[0]}x{mask[1]}"
