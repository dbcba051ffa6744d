"""What the values in masks mean: classes, pixels to ignore, colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError

# pixels of this class count neither in a loss nor in a score
IGNORE = 255


@dataclass(frozen=True)
class Labels:
    """How to read masks; what is not given is found by looking at all of them.

    Attributes:
        classes: Names in the order of the classes. By default "background" (or class 0 where
            there is none) and numbers.
        values: Value that stands for each class in a mask. By default 0, 1, 2 ..., or 1, 2, 3 ...
            if 0 is ignored; masks of nothing but 0 and 255 have the classes 0 and 255.
        colours: Red, green and blue of each class, for masks in colour.
        ignore: Value of pixels that count nowhere; -1 if there are none.
        background: The first class is no class of interest: mean Dice and the scores of each
            case leave it out.
    """

    classes: list[str] | None = None
    values: list[int] | None = None
    colours: list[list[int]] | None = None
    ignore: int = 255
    background: bool = True


DEFAULT_LABELS = Labels()


class LabelTable:
    """Class indices of mask values, and back.

    Args:
        names: Class names.
        values: Value of each class in a mask.
        ignore: Value of pixels to ignore; -1 for none.
        colours: Colour of each class in masks in colour.

    Raises:
        DataError: The lists do not have the same length, or a value is there twice.
    """

    def __init__(
        self,
        names: list[str],
        values: list[int],
        ignore: int,
        colours: list[list[int]] | None = None,
    ) -> None:
        for what, found in (("values", values), ("colours", colours)):
            if found is not None and len(found) != len(names):
                raise DataError(f"labels.{what} has {len(found)} entries for {len(names)} classes")
        if len(set(values)) != len(values) or ignore in values:
            raise DataError(f"labels.values={values} and labels.ignore={ignore} overlap")
        if len(names) >= IGNORE:
            raise DataError(f"{len(names)} classes are too many; {IGNORE - 1} are the most")
        self.names = names
        self.values = values
        self.ignore = ignore
        self.codes = None if colours is None else colour_codes(np.asarray(colours))
        highest = max([*values, ignore])
        # the last entry stands for every value beyond the table
        self.table = np.full(highest + 2, -1, dtype=np.int16)
        self.table[values] = np.arange(len(values))
        if ignore >= 0:
            self.table[ignore] = IGNORE

    def indices(self, stored: NDArray, source: str) -> NDArray[np.uint8]:
        """Values of a mask to class indices and `IGNORE`.

        Args:
            stored: (H, W) integers, or (H, W, 3) colours.
            source: What to call the mask in an error.

        Raises:
            DataError: A value or colour stands for no class; the text names both.
        """
        if stored.ndim == 3:
            return self._colour_indices(stored, source)
        last = len(self.table) - 1
        found = self.table[np.where((stored < 0) | (stored > last), last, stored)]
        if found.min(initial=0) < 0:
            unknown = np.unique(stored[found < 0])[:5].tolist()
            raise DataError(
                f"mask {source} holds the value {', '.join(map(str, unknown))}; expected "
                f"{describe_values(self.values)}{self._ignored()}"
            )
        return found.astype(np.uint8)

    def _ignored(self) -> str:
        return "" if self.ignore < 0 else f", or {self.ignore} to ignore"

    def _colour_indices(self, stored: NDArray, source: str) -> NDArray[np.uint8]:
        if self.codes is None:
            raise DataError(f"mask {source} is in colour; name the colours: labels.colours")
        codes, order = colour_codes(stored), np.argsort(self.codes)
        place = np.searchsorted(self.codes[order], codes).clip(max=len(order) - 1)
        found = order[place]
        wrong = self.codes[found] != codes
        if wrong.any():
            colour = stored[wrong][0].tolist()
            raise DataError(f"mask {source} holds the colour {colour}, which is no class")
        return found.astype(np.uint8)

    def stored(self, indices: NDArray) -> NDArray:
        """Class indices back to the values that masks have, in the smallest unsigned type."""
        values = np.asarray(self.values)
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[indices]


def colour_codes(colours: NDArray) -> NDArray[np.int64]:
    """(..., 3) colours as one number each."""
    return colours[..., :3].astype(np.int64) @ np.asarray([65536, 256, 1])


def describe_values(values: list[int]) -> str:
    """`0 to 8` or a list."""
    run = list(range(values[0], values[0] + len(values)))
    return f"{values[0]} to {values[-1]}" if values == run and len(run) > 2 else f"one of {values}"


def settle_labels(labels: Labels, found: Mapping[int, str], root: Any) -> LabelTable:
    """Fill in what `labels` leaves open.

    Args:
        labels: What is known.
        found: Values that occur in the masks, each with a mask that holds it.
        root: What to call the data set in an error.

    Raises:
        DataError: The values do not say what the classes are.
    """
    values, ignore, names = labels.values, labels.ignore, labels.classes
    if labels.colours is not None:
        values, ignore = list(range(len(labels.colours))), -1
    if values is None and set(found) <= {0, 255} and len(names or "ab") == 2 and 255 in found:
        values, ignore = [0, 255], -1
    if values is None:
        first = 1 if ignore == 0 else 0
        present = sorted(set(found) - {ignore})
        count = len(names) if names else max([*present, first + 1]) - first + 1
        values = list(range(first, first + count))
        strange = [value for value in values if value not in present]
        if names is None and strange:
            raise DataError(
                f"root={str(root)!r}: the masks hold {present[:12]} but not {strange[:5]}, and "
                f"{found[present[-1]]} holds {present[-1]}; say "
                "what the classes are: labels.classes, and labels.values unless they are 0, 1, 2"
            )
    if names is None:
        if len(values) == 2 and labels.background:
            names = ["background", "foreground"]
        else:
            names = [f"class {value}" for value in values]
            names[0] = "background" if labels.background else names[0]
    if len(names) < 2:
        raise DataError(f"root={str(root)!r}: one class only, {names}; at least two are needed")
    return LabelTable(list(names), list(values), ignore, labels.colours)
