"""A CSV file that lists images: columns path, label and, if wanted, split and group.

Several labels in one cell, joined by `;`, make the data multi-label; an empty cell is then an
image with no class. Images of one group (a patient, a scene) never fall into different splits.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.classification import Catalogue, ClassificationData
from vimamba.data.errors import DataError
from vimamba.data.samples import FileSamples, Samples, natural_order
from vimamba.data.splits import Division, check_groups, split_word

Row = dict[str, str]


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV file that must have certain columns.

    Raises:
        DataError: The file is missing or empty, or lacks a column.
    """
    if not path.is_file():
        raise DataError(f"root={str(path)!r} is not a CSV file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        have = list(reader.fieldnames or [])
        missing = [column for column in columns if column not in have]
        if missing:
            raise DataError(f"{path} lacks the column {missing}; it has {have}")
        rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    if not rows:
        raise DataError(f"{path} lists no image")
    return rows


class CSVList(ClassificationData):
    """Images and labels listed in a CSV file.

    Args:
        root: The CSV file.
        image_root: Folder that relative paths start from; the CSV's own by default.
        classes: Class names in the order wanted; others are errors. All labels by default.
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
        classes: list[str] | None = None,
        multi_label: bool | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str = "split",
        group_column: str = "group",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_root = Path(image_root) if image_root else self.root.parent
        self.classes = classes
        self.want_multi_label = multi_label
        self.path_column, self.label_column = path_column, label_column
        self.split_column, self.group_column = split_column, group_column

    def read(self) -> Catalogue:
        """Read the list; the images must exist."""
        rows = read_rows(self.root, [self.path_column, self.label_column])
        paths = tuple(self.image_root / row[self.path_column] for row in rows)
        lines: dict[Path, int] = {}
        for line, path in enumerate(paths, 2):
            if not path.is_file():
                raise DataError(f"{self.root}, line {line}: image {path} does not exist")
            if lines.setdefault(path, line) != line:
                raise DataError(
                    f"{self.root}, lines {lines[path]} and {line}: {path} is there twice"
                )
        names, labels, multi_label = self._labels([row[self.label_column] for row in rows])
        samples = FileSamples(paths, labels, self.image_root)
        groups = None
        if self.group_column in rows[0]:
            groups = [row[self.group_column] for row in rows]
        if self.split_column in rows[0] and self.split_csv is None:
            splits, drawn = self._given_splits(rows, samples, groups)
        else:
            splits, drawn = self.divide(samples, groups), True
        return Catalogue(tuple(names), multi_label, splits, drawn)

    def _labels(self, cells: list[str]) -> tuple[list[str], NDArray, bool]:
        """Class names, labels and whether they are multi-label."""
        multi_label = self.want_multi_label
        if multi_label is None:
            multi_label = any(";" in cell for cell in cells)
        marks = [
            [m.strip() for m in c.split(";") if m.strip()] if multi_label else [c] for c in cells
        ]
        names = self.classes or sorted({m for ms in marks for m in ms if m}, key=natural_order)
        place = {name: index for index, name in enumerate(names)}
        for line, found in enumerate(marks, 2):
            unknown = [mark for mark in found if mark not in place]
            if unknown:
                raise DataError(
                    f"{self.root}, line {line}: label {unknown[0]!r} is not one of {names}"
                    if unknown[0]
                    else f"{self.root}, line {line}: the label is empty"
                )
        if not multi_label:
            return names, np.asarray([place[m[0]] for m in marks], dtype=np.int64), False
        labels = np.zeros((len(marks), len(names)), dtype=np.float32)
        for row, found in enumerate(marks):
            labels[row, [place[mark] for mark in found]] = 1
        return names, labels, True

    def _given_splits(
        self, rows: list[Row], samples: FileSamples, groups: list[str] | None
    ) -> tuple[dict[str, Samples], bool]:
        """Take the split column; hold out val from train if the column has none."""
        words = np.asarray([split_word(row[self.split_column], self.root) for row in rows])
        if self.draws_fold:  # from all that is not for test
            words[words == "val"] = "train"
        given: Division = {str(word): np.flatnonzero(words == word) for word in np.unique(words)}
        if groups is not None:
            check_groups(given, groups)
        splits: dict[str, Samples] = {name: samples.take(at) for name, at in given.items()}
        if "val" in given or "train" not in given:
            return splits, False
        train_groups = None if groups is None else [groups[i] for i in given["train"]]
        splits.update(self.divide(splits["train"], train_groups, val_only=True))
        return splits, True
