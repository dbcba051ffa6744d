"""Whether the files of a pair belong together: sizes, maps, places, bands, values and labels."""

from collections.abc import Sequence
from typing import NamedTuple

from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import raster_grid
from vimamba.data.paired.items import DatePair
from vimamba.data.paired.truths import Truths

# what a network can do with, though it may not be meant
HARMLESS = ("bands", "values")


class Problem(NamedTuple):
    """What does not match within a pair.

    Attributes:
        what: "file", "size", "CRS", "place", "bands", "values" or "labels".
        text: What is wrong, with the names of the files.
    """

    what: str
    text: str

    @property
    def is_harmless(self) -> bool:
        """Whether the pair can be used all the same."""
        return self.what in HARMLESS


def examine(pair: DatePair, truths: Truths | None) -> tuple[NDArray | None, list[Problem]]:
    """Compare the files of a pair with its first date.

    Args:
        pair: The pair.
        truths: How its labels are read; None if there are none.

    Returns:
        Maps of the labels, (M, H, W), if they can be read, and what does not match.
    """
    try:
        heads = [image.head() for image in pair.images()]
        problems = find_apart(pair)
    except DataError as error:
        return None, [Problem("file", str(error))]
    first, second = heads
    if first.size != second.size:
        problems.append(Problem("size", different_dates(pair, first.size, second.size)))
    counts = [{head.bands, head.bands + head.transparent} for head in heads]
    if not counts[0] & counts[1]:
        text = f"{pair.name} has {first.bands} bands before and {second.bands} after"
        problems.append(Problem("bands", text))
    if first.deep != second.deep:
        deep = ["more" if head.deep else "8" for head in heads]
        text = f"{pair.name} has {deep[0]} bits before and {deep[1]} after"
        problems.append(Problem("values", text))
    if truths is None:
        return None, problems
    try:
        truth = truths.read(pair)
    except DataError as error:
        return None, [*problems, Problem("labels", str(error))]
    if truth.shape[1:] != first.size:
        text = different_labels(pair, first.size, truth.shape[1:])
        problems.append(Problem("size", text))
    return truth, problems


def find_apart(pair: DatePair) -> list[Problem]:
    """GeoTIFF files whose position differs from that of the first image."""
    here = raster_grid(pair.files["before"])
    problems = []
    for path in pair.files.values():
        there = raster_grid(path)
        if here is None or there is None or here.agrees(there):
            continue
        places = f"{path} ({there.text}), {pair.files['before']} ({here.text})"
        if not here.same_frame(there):
            problems.append(Problem("CRS", f"on two maps: {places}"))
        elif here.shape == there.shape:
            remedy = "warp one onto the grid of the other"
            problems.append(Problem("place", f"in two places: {places}; {remedy}"))
    return problems


def different_dates(pair: DatePair, before: Sequence[int], after: Sequence[int]) -> str:
    """Text for a pair whose dates differ in size."""
    return (
        f"{pair.name} has {before[0]}x{before[1]} pixels before and {after[0]}x{after[1]} after; "
        "both dates must be on one grid"
    )


def different_labels(pair: DatePair, image: Sequence[int], labels: Sequence[int]) -> str:
    """Text for a pair whose labels have another size."""
    return f"{pair.name} has {image[0]}x{image[1]} pixels, its labels {labels[0]}x{labels[1]}"
