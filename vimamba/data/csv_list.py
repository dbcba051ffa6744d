"""A CSV file that lists images: columns path, label and, if wanted, split and group.

Several labels in one cell, joined by `;`, make the data multi-label; an empty cell is then an
image with no class. Images of one group (a patient, a scene) never fall into different splits; an
image without a group is alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.classification import Catalogue, ClassificationData
from vimamba.data.errors import DataError
from vimamba.data.listing import check_files, composed, find_file, natural_order
from vimamba.data.lists import Row, read_rows
from vimamba.data.remarks import Remarks
from vimamba.data.samples import FileSamples, Samples
from vimamba.data.splits import Division, check_groups, split_word


def find_listed(
    rows: Sequence[Row], column: str, folder: Path, source: Path, what: str = "image"
) -> list[Path]:
    """The files that a column names.

    Args:
        rows: Lines of a list.
        column: Column of the paths.
        folder: Where relative paths start.
        source: The list, to name it in errors.
        what: What to call the files in errors.

    Raises:
        DataError: A file does not exist or is empty; the text names the line.
    """
    paths: list[Path] = []
    for row in rows:
        path = find_file(folder / row[column]) if row[column] else None
        if path is None:
            named = f"{what} {folder / row[column]} does not exist"
            text = named if row[column] else f"the {what} is empty"
            raise DataError(f"{source}, line {row.line}: {text}")
        paths.append(path)
    check_files(paths)
    return paths


def check_once(rows: Sequence[Row], paths: Sequence[Path], source: Path) -> None:
    """Fail on a file that two lines name, however they write its path."""
    lines: dict[Path, int] = {}
    for row, path in zip(rows, paths, strict=True):
        first = lines.setdefault(path.resolve(), row.line)
        if first != row.line:
            raise DataError(f"{source}, lines {first} and {row.line}: {path} is there twice")


def given_division(rows: Sequence[Row], column: str, source: Path) -> Division:
    """The division that a column of splits gives.

    Raises:
        DataError: A word is no split; the text names the line.
    """
    words = [split_word(row[column], f"{source}, line {row.line}") for row in rows]
    return {word: np.flatnonzero(np.asarray(words) == word) for word in dict.fromkeys(words)}


def say_alone(remarks: Remarks, count: int, total: int, column: str) -> None:
    """Say that some of the rows name no group."""
    if 0 < count < total:
        remarks.say(f"{count} of {total} rows have no {column}: each of these images is alone")


class CSVList(ClassificationData):
    """Images and labels listed in a CSV file.

    Args:
        root: The CSV file.
        image_root: Folder that relative paths start from; the CSV's own by default.
        multi_label: Any number of classes per image; None decides by whether a cell has a `;`.
        path_column: Column of the image's path.
        label_column: Column of the label.
        split_column: Column of train, val or test; used if it is there.
        group_column: Column of the group; used if it is there.
        **kwargs: Arguments of `ClassificationData`.
    """

    def __init__(
        self,
        root: str,
        *,
        image_root: str | None = None,
        multi_label: bool | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str = "split",
        group_column: str = "group",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_root = Path(image_root) if image_root else self.root.parent
        self.want_multi_label = multi_label
        self.path_column, self.label_column = path_column, label_column
        self.split_column, self.group_column = split_column, group_column

    def read(self) -> Catalogue:
        """Read the list; the images must exist."""
        rows = read_rows(self.root, [self.path_column, self.label_column], self.remarks)
        paths = find_listed(rows, self.path_column, self.image_root, self.root)
        check_once(rows, paths, self.root)
        names, labels, multi_label = self._labels(rows)
        samples = FileSamples(tuple(paths), labels, self.image_root)
        groups = None
        if self.group_column in rows[0]:
            given = [composed(row[self.group_column]) for row in rows]
            say_alone(self.remarks, given.count(""), len(given), self.group_column)
            groups = [group or samples.name(index) for index, group in enumerate(given)]
            self.grouping = dict(zip(map(samples.name, range(len(samples))), groups, strict=True))
        if self.split_column in rows[0] and self.split_csv is None:
            splits, drawn = self._given_splits(rows, samples, groups)
        else:
            splits, drawn = self.divide(samples, groups), True
        return Catalogue(tuple(names), multi_label, splits, drawn)

    def _labels(self, rows: Sequence[Row]) -> tuple[list[str], NDArray, bool]:
        """Class names, labels and whether they are multi-label."""
        cells = [composed(row[self.label_column]) for row in rows]
        multi_label = self.want_multi_label
        if multi_label is None:
            multi_label = any(";" in cell for cell in cells)
        marks = [
            [m.strip() for m in c.split(";") if m.strip()] if multi_label else [c] for c in cells
        ]
        names = self.classes or sorted({m for ms in marks for m in ms if m}, key=natural_order)
        place = {name: index for index, name in enumerate(names)}
        for row, found in zip(rows, marks, strict=True):
            unknown = [mark for mark in found if mark not in place]
            if unknown:
                raise DataError(
                    f"{self.root}, line {row.line}: label {unknown[0]!r} is not one of {names}"
                    if unknown[0]
                    else f"{self.root}, line {row.line}: the label is empty"
                )
        if not multi_label:
            return names, np.asarray([place[m[0]] for m in marks], dtype=np.int64), False
        labels = np.zeros((len(marks), len(names)), dtype=np.float32)
        for index, found in enumerate(marks):
            labels[index, [place[mark] for mark in found]] = 1
        return names, labels, True

    def _given_splits(
        self, rows: Sequence[Row], samples: FileSamples, groups: list[str] | None
    ) -> tuple[dict[str, Samples], bool]:
        """Take the split column; hold out val from train if the column has none."""
        given = self.pool_division(given_division(rows, self.split_column, self.root))
        if groups is not None:
            check_groups(given, groups)
        splits: dict[str, Samples] = {name: samples.take(at) for name, at in given.items()}
        if "val" in given or "train" not in given:
            return splits, False
        train_groups = None if groups is None else [groups[i] for i in given["train"]]
        splits.update(self.divide(splits["train"], train_groups, val_only=True))
        return splits, True
