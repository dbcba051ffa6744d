"""A CSV file that lists images: columns path, label and optionally split and group.

Several labels in one cell, joined by `;`, make the data multi-label; an empty cell is then an image
with no class. Images of one group (a patient, a scene) are never in different splits; an image
without a group is its own group.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue, relative_name, take
from vimamba.data.labelled.classification import ClassificationData
from vimamba.data.labelled.items import Label, LabelledFile
from vimamba.data.listing import composed, natural_order
from vimamba.data.lists import Row, check_once, find_listed, note_ungrouped, read_rows
from vimamba.data.splits import check_groups, given_division


class CSVList(ClassificationData):
    """Images and labels listed in a CSV file.

    Args:
        root: The CSV file.
        image_root: Folder that relative paths start from; the CSV's own by default.
        multi_label: Any number of classes per image; None: if any cell has a `;`.
        path_column: Column of the image's path.
        label_column: Column of the label.
        split_column: Column with train, val or test; used if present.
        group_column: Column of the group; used if present.
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
        names, labels = self._labels(rows)
        groups = [composed(row.get(self.group_column, "")) for row in rows]
        if self.group_column in rows[0]:
            note_ungrouped(self.remarks, groups.count(""), len(groups), self.group_column)
            names_of = (relative_name(path, self.image_root) for path in paths)
            groups = [group or name for group, name in zip(groups, names_of, strict=True)]
        items = tuple(
            LabelledFile(path, self.image_root, label, group)
            for path, label, group in zip(paths, labels, groups, strict=True)
        )
        if self.split_column in rows[0] and self.split_csv is None:
            splits, drawn = self._given_splits(rows, items)
        else:
            splits, drawn = self.divide(items), True
        return Catalogue(splits, drawn, tuple(names))

    def _labels(self, rows: Sequence[Row]) -> tuple[list[str], Sequence[Label]]:
        """Class names and labels."""
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
            return names, [place[m[0]] for m in marks]
        labels = np.zeros((len(marks), len(names)), dtype=np.float32)
        for index, found in enumerate(marks):
            labels[index, [place[mark] for mark in found]] = 1
        return names, list(labels)

    def _given_splits(
        self, rows: Sequence[Row], items: tuple[LabelledFile, ...]
    ) -> tuple[dict[str, tuple[LabelledFile, ...]], bool]:
        """Take the split column; hold out val from train if the column has none."""
        given = given_division(rows, self.split_column, self.root)
        if self.draws_fold and {"train", "val"} <= given.keys():  # from all non-test images
            given["train"] = np.sort(np.concatenate([given["train"], given.pop("val")]))
        if groups := self.groups_of(items):
            check_groups(given, groups)
        splits = {name: take(items, at) for name, at in given.items()}
        if "val" in given or "train" not in given:
            return splits, False
        return {**splits, **self.divide(splits["train"], val_only=True)}, True
