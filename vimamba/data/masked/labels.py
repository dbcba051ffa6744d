"""What the values in masks mean: classes, pixels to ignore, colors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.labels import IGNORE

# a mask written as PNG holds 16 bits
HIGHEST = 65535
# of masks and of values in a message
MOST_NAMED, MOST_VALUES = 5, 30
# so many strange values are no classes but soft edges
SOFT = 12
# scaled integers in a volume come back with this much of an error at most
ROUNDING = 1e-3


@dataclass(frozen=True)
class Labels:
    """How to read masks; what is not given is found by looking at all of them.

    Attributes:
        classes: Names in the order of the classes. By default "background" (or class 0 where
            there is none) and numbers.
        values: Value that stands for each class in a mask. By default 0, 1, 2 ..., or 1, 2, 3 ...
            if 0 is ignored; masks of nothing but 0 and 255 have the classes 0 and 255.
        colors: Red, green and blue of each class, for masks in color.
        ignore: Value of pixels that count nowhere; -1 if there are none.
        background: True if the first class is what lies around the classes of interest: mean Dice
            and the scores of each case then leave it out.
    """

    classes: list[str] | None = None
    values: list[int] | None = None
    colors: list[list[int]] | None = None
    ignore: int = 255
    background: bool = True


DEFAULT_LABELS = Labels()


class LabelTable:
    """Class indices of mask values, and back.

    Args:
        names: Class names.
        values: Value of each class in a mask.
        ignore: Value of pixels to ignore; -1 for none.
        colors: Color of each class in masks in color.

    Raises:
        DataError: The lists do not have the same length, or a value is there twice.
    """

    def __init__(
        self,
        names: list[str],
        values: list[int],
        ignore: int,
        colors: list[list[int]] | None = None,
    ) -> None:
        for what, found in (("values", values), ("colors", colors)):
            if found is not None and len(found) != len(names):
                raise DataError(f"labels.{what} has {len(found)} entries for {len(names)} classes")
        if len(set(values)) != len(values) or ignore in values:
            raise DataError(f"labels.values={values} and labels.ignore={ignore} overlap")
        if not all(0 <= value <= HIGHEST for value in values):
            raise DataError(f"labels.values={values} must lie in 0 to {HIGHEST}")
        if len(names) >= IGNORE:
            raise DataError(f"{len(names)} classes are too many; {IGNORE - 1} are the most")
        self.names = names
        self.values = values
        self.ignore = ignore
        self.colors = colors
        self.codes = None if colors is None else color_codes(np.asarray(colors))
        highest = max([*values, ignore])
        # the last entry stands for every value beyond the table
        self.table = np.full(highest + 2, -1, dtype=np.int16)
        self.table[values] = np.arange(len(values))
        if ignore >= 0:
            self.table[ignore] = IGNORE

    def indices(self, stored: NDArray, source: str) -> NDArray[np.uint8]:
        """Values of a mask to class indices and `IGNORE`.

        Args:
            stored: (H, W) integers, or (H, W, 3) colors.
            source: What to call the mask in an error.

        Raises:
            DataError: A value or color stands for no class; the text names both.
        """
        if stored.ndim == 3 and self.codes is not None:
            return self._color_indices(stored, source)
        stored = gray_values(stored, source)
        last = len(self.table) - 1
        found = self.table[np.where((stored < 0) | (stored > last), last, stored)]
        if found.min(initial=0) < 0:
            raise self.unknown(dict.fromkeys(np.unique(stored[found < 0]).tolist(), source))
        return found.astype(np.uint8)

    def unknown(self, holders: Mapping[int, str]) -> DataError:
        """The error for values that are no class.

        Args:
            holders: For each of them, a mask that holds it.
        """
        by_mask: dict[str, list[int]] = {}
        for value, source in holders.items():
            by_mask.setdefault(source, []).append(value)
        texts = [
            f"mask {source} holds the value {name_values(values)}"
            for source, values in list(by_mask.items())[:MOST_NAMED]
        ]
        more = len(by_mask) - MOST_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        ignored = "" if self.ignore < 0 else f", or {self.ignore} to ignore"
        expected = f"expected {describe_values(self.values)}{ignored}"
        return DataError(f"{'; '.join(texts)}{rest}; {expected}{soft_edges(holders)}")

    def is_class(self, value: int) -> bool:
        """Whether a value stands for a class or is ignored."""
        return 0 <= value < len(self.table) and self.table[value] >= 0

    def _color_indices(self, stored: NDArray, source: str) -> NDArray[np.uint8]:
        assert self.codes is not None
        codes, order = color_codes(stored), np.argsort(self.codes)
        place = np.searchsorted(self.codes[order], codes).clip(max=len(order) - 1)
        found = order[place]
        wrong = self.codes[found] != codes
        if wrong.any():
            color = stored[wrong][0].tolist()
            raise DataError(f"mask {source} holds the color {color}, which is no class")
        return found.astype(np.uint8)

    def stored(self, indices: NDArray) -> NDArray:
        """Class indices back to the values that masks have, in the smallest unsigned type."""
        values = np.asarray(self.values)
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[indices]


def color_codes(colors: NDArray) -> NDArray[np.int64]:
    """(..., 3) colors as one number each."""
    return colors[..., :3].astype(np.int64) @ np.asarray([65536, 256, 1])


def gray_values(stored: NDArray, source: str) -> NDArray:
    """(H, W) values of a mask that may be stored as colors, if these are shades of gray.

    Raises:
        DataError: It is in color; the text names it.
    """
    if stored.ndim == 2:
        return stored
    if (stored == stored[:, :, :1]).all():
        return stored[:, :, 0]
    colors = np.unique(stored.reshape(-1, stored.shape[2]), axis=0)
    raise DataError(
        f"mask {source} is in color; name the colors: labels.colors ({len(colors)} of them, "
        f"such as {colors[len(colors) // 2].tolist()})"
    )


def mask_values(stored: NDArray, source: str, *, blurred: bool = False) -> NDArray:
    """Pixels of a mask file as values or colors.

    Args:
        stored: (H, W) or (H, W, C): gray or color, with transparency or without.
        source: What to call the mask in an error.
        blurred: The format changes values, as JPEG does.

    Returns:
        (H, W) integers, or (H, W, 3) uint8 colors.

    Raises:
        DataError: It cannot be told what the pixels stand for; the text names the mask.
    """
    if stored.ndim == 3 and stored.shape[2] in (2, 4):
        opaque = stored[:, :, -1]
        if opaque.min(initial=255) != opaque.max(initial=0):
            found = name_values(np.unique(opaque).tolist())
            raise DataError(
                f"mask {source} is transparent in parts (opacity {found}); save it without"
            )
        stored = stored[:, :, :-1]
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if stored.ndim != 2 and not (stored.ndim == 3 and stored.shape[2] == 3):
        raise DataError(f"mask {source} has the shape {stored.shape}; expected one value per pixel")
    return black_and_white(stored, source) if blurred else whole_numbers(stored, source)


def black_and_white(stored: NDArray, source: str) -> NDArray[np.uint8]:
    """0 and 255 of a mask that was saved with loss.

    Raises:
        DataError: There are other values than such a file has along the edges of black and white.
    """
    pixels = stored.astype(np.int16)
    gray = pixels if pixels.ndim == 2 else pixels.mean(-1)
    colored = pixels.ndim == 3 and np.ptp(pixels, axis=2).max(initial=0) > 64
    if colored or 0 < gray.max(initial=0) < 192 or has_plateau(gray):
        found = name_values(np.unique(stored).tolist())
        raise DataError(
            f"mask {source} holds {found}; a format with losses can only keep masks of 0 and 255: "
            "save it as PNG"
        )
    return np.where(gray > 127, 255, 0).astype(np.uint8)


def has_plateau(gray: NDArray) -> bool:
    """Whether 3 x 3 pixels somewhere are alike and neither black nor white, as no edge is."""
    if min(gray.shape) < 3:
        return False
    rows, columns = gray.shape[0] - 2, gray.shape[1] - 2
    shifted = [gray[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    least, most = np.minimum.reduce(shifted), np.maximum.reduce(shifted)
    return bool(((least >= 48) & (most < 208) & (most - least <= 40)).any())


def whole_numbers(values: NDArray, source: str) -> NDArray:
    """Values of a mask as integers.

    Raises:
        DataError: They are fractions, as probabilities are, or no numbers; the text names both.
    """
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind != "f":
        raise DataError(
            f"mask {source} holds {values.dtype}; expected whole numbers, one per class"
        )
    if not np.isfinite(values).all():
        raise DataError(f"mask {source} holds values that are not finite; expected whole numbers")
    whole = np.rint(values)
    apart = np.abs(values - whole)
    if apart.max(initial=0) > ROUNDING:
        odd = float(values.flat[int(apart.argmax())])
        raise DataError(
            f"mask {source} holds fractions such as {odd:.4g}; expected whole numbers, one a class"
        )
    return whole.astype(np.int64)


def describe_values(values: list[int]) -> str:
    """`0 to 8` or a list."""
    run = list(range(values[0], values[0] + len(values)))
    return f"{values[0]} to {values[-1]}" if values == run and len(run) > 2 else f"one of {values}"


def name_values(values: Iterable[int]) -> str:
    """`4, 5, 77`; of many the first and how many there are."""
    ordered = sorted(values)
    shown = ", ".join(map(str, ordered[:MOST_VALUES]))
    more = len(ordered) - MOST_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def soft_edges(values: Iterable[int]) -> str:
    """A hint where so many values are strange that it cannot be a few classes."""
    if len(set(values)) < SOFT:
        return ""
    return "; masks that were resized smoothly or saved as JPEG have such values along their edges"


def check_kinds(kinds: Mapping[frozenset[int], str], root: Any) -> None:
    """Fail where 255 could be the object in some masks of two classes, and 1 is in others.

    Args:
        kinds: Sets of values that occur together, each with a mask that holds them.
        root: What to call the data set in an error.
    """
    if not set().union(*kinds) <= {0, 1, 255} or any({1, 255} <= kind for kind in kinds):
        return
    ones = [source for kind, source in kinds.items() if 1 in kind]
    whites = [source for kind, source in kinds.items() if 255 in kind]
    if ones and whites:
        raise DataError(
            f"root={str(root)!r}: some masks hold 0 and 1, such as {ones[0]}, and others 0 and "
            f"255, such as {whites[0]}; save all in the same way, or, if 255 is to be ignored, say "
            "labels.values=[0, 1]"
        )


def settle_labels(
    labels: Labels, found: Mapping[int, str], kinds: Mapping[frozenset[int], str], root: Any
) -> LabelTable:
    """Fill in what `labels` leaves open.

    Args:
        labels: What is known.
        found: Values that occur in the masks, each with a mask that holds it.
        kinds: As in `check_kinds`.
        root: What to call the data set in an error.

    Raises:
        DataError: The values do not say what the classes are.
    """
    values, ignore, names = labels.values, labels.ignore, labels.classes
    if labels.colors is not None:
        values, ignore = list(range(len(labels.colors))), -1
    if values is None and ignore == IGNORE:
        check_kinds(kinds, root)
    if values is None and set(found) <= {0, 255} and len(names or "ab") == 2 and 255 in found:
        values, ignore = [0, 255], -1
    if values is None:
        first = 1 if ignore == 0 else 0
        present = sorted(set(found) - {ignore})
        count = len(names) if names else max([*present, first + 1]) - first + 1
        values = list(range(first, first + count))
        run = next((v for v in range(first, first + count + 1) if v not in found), first)
        stray = [value for value in present if not first <= value < run]
        if names is None and stray:
            held = ", ".join(f"{value} ({found[value]})" for value in stray[:MOST_NAMED])
            more = len(stray) - MOST_NAMED
            held += f" and {more} more values" if more > 0 else ""
            ignored = f" and {ignore} to ignore" if ignore in found else ""
            raise DataError(
                f"root={str(root)!r}: the masks hold {name_values(present)}{ignored}, but not "
                f"{run}; beyond it are {held}; say what the classes are: labels.classes, and "
                f"labels.values unless they are {first}, {first + 1}, {first + 2}"
                f"{soft_edges(stray)}"
            )
    if names is None:
        if len(values) == 2 and labels.background:
            names = ["background", "foreground"]
        else:
            names = [f"class {value}" for value in values]
            names[0] = "background" if labels.background else names[0]
    if len(names) < 2:
        raise DataError(f"root={str(root)!r}: only one class, {names}; at least two are needed")
    return LabelTable(list(names), list(values), ignore, labels.colors)


def read_as_they_are(
    table: LabelTable,
    found: Mapping[int, str],
    kinds: Mapping[frozenset[int], str],
    root: Any,
) -> LabelTable:
    """The table for other masks of the same classes: of two, 1 or 255 may be the second.

    Args:
        table: Of the masks of the training.
        found: As in `settle_labels`.
        kinds: As in `check_kinds`.
        root: What to call the masks in an error.

    Raises:
        DataError: Some masks hold 1 and some 255.
    """
    if table.codes is not None or len(table.values) != 2 or not set(found) <= {0, 1, 255}:
        return table
    check_kinds(kinds, root)
    if table.values == [0, 1] and 255 in found and 1 not in found:
        return LabelTable(table.names, [0, 255], -1)
    if table.values == [0, 255] and 1 in found:
        return LabelTable(table.names, [0, 1], IGNORE)
    return table
