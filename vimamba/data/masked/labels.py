"""Meaning of mask values: classes, pixels to ignore, colors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.labels import IGNORE

# a PNG mask has up to 16 bits
HIGHEST = 65535
# numbers of masks and of values listed in a message
MOST_NAMED, MOST_VALUES = 5, 30
# this many unexpected values indicate soft edges, not classes
SOFT = 12
# largest error of scaled integers in a volume
ROUNDING = 1e-3


@dataclass(frozen=True)
class Labels:
    """How to read masks; missing settings are inferred from all masks.

    Attributes:
        classes: Names in the order of the classes. By default "background" (or class 0 if there is
            none) and numbers.
        values: Value of each class in a mask. By default 0, 1, 2 ..., or 1, 2, 3 ... if 0 is
            ignored; masks with only 0 and 255 have the classes 0 and 255.
        colors: Red, green and blue of each class, for color masks.
        ignore: Value of ignored pixels; -1 for none.
        background: Whether the first class is background, which mean Dice and the scores of each
            case leave out.
    """

    classes: list[str] | None = None
    values: list[int] | None = None
    colors: list[list[int]] | None = None
    ignore: int = 255
    background: bool = True


DEFAULT_LABELS = Labels()


class LabelTable:
    """Converts mask values to class indices and back.

    Args:
        names: Class names.
        values: Value of each class in a mask.
        ignore: Value of pixels to ignore; -1 for none.
        colors: Color of each class, for color masks.

    Raises:
        DataError: The lists differ in length, or a value occurs twice.
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
            raise DataError(
                f"{len(names)} classes are too many; at most {IGNORE - 1} are supported"
            )
        self.names = names
        self.values = values
        self.ignore = ignore
        self.colors = colors
        self.codes = None if colors is None else color_codes(np.asarray(colors))
        highest = max([*values, ignore])
        # the last entry is for all values beyond the table
        self.table = np.full(highest + 2, -1, dtype=np.int16)
        self.table[values] = np.arange(len(values))
        if ignore >= 0:
            self.table[ignore] = IGNORE

    def indices(self, stored: NDArray, source: str) -> NDArray[np.uint8]:
        """Convert values of a mask to class indices and `IGNORE`.

        Args:
            stored: (H, W) integers, or (H, W, 3) colors.
            source: Name of the mask in errors.

        Raises:
            DataError: A value or color is not a class; the message names both.
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
        """The error for values that are not classes.

        Args:
            holders: For each value, a mask that has it.
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
        """Whether a value is a class or is ignored."""
        return 0 <= value < len(self.table) and self.table[value] >= 0

    def _color_indices(self, stored: NDArray, source: str) -> NDArray[np.uint8]:
        assert self.codes is not None
        codes, order = color_codes(stored), np.argsort(self.codes)
        place = np.searchsorted(self.codes[order], codes).clip(max=len(order) - 1)
        found = order[place]
        wrong = self.codes[found] != codes
        if wrong.any():
            color = stored[wrong][0].tolist()
            raise DataError(f"mask {source} holds the color {color}, which is not a class")
        return found.astype(np.uint8)

    def stored(self, indices: NDArray) -> NDArray:
        """Convert class indices to mask values, in the smallest unsigned type."""
        values = np.asarray(self.values)
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[indices]


def color_codes(colors: NDArray) -> NDArray[np.int64]:
    """Encode (..., 3) colors as one number each."""
    return colors[..., :3].astype(np.int64) @ np.asarray([65536, 256, 1])


def gray_values(stored: NDArray, source: str) -> NDArray:
    """(H, W) values of a mask that may be stored as gray colors.

    Raises:
        DataError: It has other colors; the message names it.
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
    """Convert pixels of a mask file to values or colors.

    Args:
        stored: (H, W) or (H, W, C): gray or color, with or without transparency.
        source: Name of the mask in errors.
        blurred: The format is lossy, like JPEG.

    Returns:
        (H, W) integers, or (H, W, 3) uint8 colors.

    Raises:
        DataError: The meaning of the pixels is ambiguous; the message names the mask.
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
    """Recover 0 and 255 of a mask that was saved with lossy compression.

    Raises:
        DataError: It has other values than artifacts at edges between black and white.
    """
    pixels = stored.astype(np.int16)
    gray = pixels if pixels.ndim == 2 else pixels.mean(-1)
    colored = pixels.ndim == 3 and np.ptp(pixels, axis=2).max(initial=0) > 64
    if colored or 0 < gray.max(initial=0) < 192 or has_plateau(gray):
        found = name_values(np.unique(stored).tolist())
        raise DataError(
            f"mask {source} holds {found}; a lossy format can only store masks of 0 and 255: "
            "save it as PNG"
        )
    return np.where(gray > 127, 255, 0).astype(np.uint8)


def has_plateau(gray: NDArray) -> bool:
    """Whether any 3 x 3 pixels are equal and neither black nor white, unlike at edges."""
    if min(gray.shape) < 3:
        return False
    rows, columns = gray.shape[0] - 2, gray.shape[1] - 2
    shifted = [gray[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    least, most = np.minimum.reduce(shifted), np.maximum.reduce(shifted)
    return bool(((least >= 48) & (most < 208) & (most - least <= 40)).any())


def whole_numbers(values: NDArray, source: str) -> NDArray:
    """Values of a mask as integers.

    Raises:
        DataError: They are fractions, like probabilities, or not numbers; the message names both.
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
    """`4, 5, 77`; of many only the first and the number of others."""
    ordered = sorted(values)
    shown = ", ".join(map(str, ordered[:MOST_VALUES]))
    more = len(ordered) - MOST_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def soft_edges(values: Iterable[int]) -> str:
    """A hint if there are too many unexpected values to be classes."""
    if len(set(values)) < SOFT:
        return ""
    return "; masks that were resized smoothly or saved as JPEG have such values along their edges"


def check_mask_values(kinds: Mapping[frozenset[int], str], root: Any) -> None:
    """Fail if the second of two classes could be 255 in some masks and 1 in others.

    Args:
        kinds: Sets of values that occur together, each with an example mask.
        root: Name of the data set in errors.
    """
    if not set().union(*kinds) <= {0, 1, 255} or any({1, 255} <= kind for kind in kinds):
        return
    ones = [source for kind, source in kinds.items() if 1 in kind]
    whites = [source for kind, source in kinds.items() if 255 in kind]
    if ones and whites:
        raise DataError(
            f"root={str(root)!r}: some masks hold 0 and 1, such as {ones[0]}, and others 0 and "
            f"255, such as {whites[0]}; save all in the same way, or, if 255 is to be ignored, set "
            "labels.values=[0, 1]"
        )


def infer_labels(
    labels: Labels, found: Mapping[int, str], kinds: Mapping[frozenset[int], str], root: Any
) -> LabelTable:
    """Fill in what `labels` leaves open.

    Args:
        labels: The given labels.
        found: Values that occur in the masks, each with an example mask.
        kinds: As in `check_mask_values`.
        root: Name of the data set in errors.

    Raises:
        DataError: The classes cannot be inferred from the values.
    """
    values, ignore, names = labels.values, labels.ignore, labels.classes
    if labels.colors is not None:
        values, ignore = list(range(len(labels.colors))), -1
    if values is None and ignore == IGNORE:
        check_mask_values(kinds, root)
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
                f"{run}; beyond it are {held}; set the classes with labels.classes, and "
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
    """The table for other masks of the same classes; with two, 1 or 255 may be the second.

    Args:
        table: Table of the training masks.
        found: As in `infer_labels`.
        kinds: As in `check_mask_values`.
        root: Name of the masks in errors.

    Raises:
        DataError: Some masks have 1 and some 255.
    """
    if table.codes is not None or len(table.values) != 2 or not set(found) <= {0, 1, 255}:
        return table
    check_mask_values(kinds, root)
    if table.values == [0, 1] and 255 in found and 1 not in found:
        return LabelTable(table.names, [0, 255], -1)
    if table.values == [0, 255] and 1 in found:
        return LabelTable(table.names, [0, 1], IGNORE)
    return table
