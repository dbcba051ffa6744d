"""A CSV file of pairs: columns moving and fixed, and optionally their labels and a split.

For two modalities or dates of a patient, and whenever not all cases should be paired.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue, take
from vimamba.data.lists import Row, find_listed, read_rows
from vimamba.data.paired.cases import Case, Pair
from vimamba.data.paired.registration import ListedPairs, Pairs, RegistrationData
from vimamba.data.splits import given_division

LABELS = ("moving_labels", "fixed_labels")


def read_pairs(path: Path, root: Path, *, labels: bool = True) -> tuple[list[Row], list[Pair]]:
    """The pairs in a list, and its rows.

    Args:
        path: The CSV file.
        root: Folder that relative paths start from.
        labels: Whether to require both label columns or none.

    Raises:
        DataError: A column or a file is missing; the message names the line.
    """
    rows = read_rows(path, ["moving", "fixed"])
    have = [column for column in LABELS if column in rows[0]]
    if labels and len(have) == 1:
        raise DataError(f"{path} has only the column {have[0]}; expected both of {list(LABELS)}")
    sides = []
    for what, column in zip(("moving", "fixed"), LABELS, strict=True):
        images = find_listed(rows, what, root, path, f"{what} image")
        paths: Sequence[Path | None] = [None] * len(rows)
        if column in have:
            paths = find_listed(rows, column, root, path, column)
        sides.append([Case(i, root, p) for i, p in zip(images, paths, strict=True)])
    return rows, [Pair(moving, fixed) for moving, fixed in zip(*sides, strict=True)]


def group_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Assign a group to pairs that share an image, directly or through other pairs.

    An image shared by all pairs, an atlas, does not make them one group.
    """
    paths = [tuple(case.path.resolve() for case in pair.cases) for pair in pairs]
    shared = set.intersection(*(set(pair) for pair in paths)) if len(paths) > 1 else set()
    parent: dict[Path, Path] = {}

    def top(path: Path) -> Path:
        while parent.setdefault(path, path) != path:
            path = parent[path]
        return path

    for pair in paths:
        own = [path for path in pair if path not in shared] or [pair[0]]
        parent[top(own[0])] = top(own[-1])
    groups = []
    for pair in paths:
        own = next((path for path in pair if path not in shared), pair[0])
        groups.append(top(own).as_posix())
    return [Pair(p.moving, p.fixed, group) for p, group in zip(pairs, groups, strict=True)]


class PairCSV(RegistrationData):
    """Pairs listed in a CSV file.

    Pairs that share an image are never in two splits, unless all pairs share it.

    Args:
        root: The CSV file.
        image_root: Folder that relative paths start from; the CSV's own by default.
        split_column: Column with train, val or test; used if present.
        **kwargs: Arguments of `RegistrationData`.
    """

    unit: ClassVar[str] = "pairs"

    def __init__(
        self,
        root: str,
        *,
        image_root: str | None = None,
        split_column: str = "split",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_root = Path(image_root) if image_root else self.root.parent
        self.split_column = split_column

    def read(self) -> Catalogue:
        """Read the list; the files must exist."""
        rows, pairs = read_pairs(self.root, self.image_root)
        items = tuple(group_pairs(pairs))
        if self.split_column not in rows[0] or self.split_csv is not None or self.whole:
            return Catalogue(self.divide(items), drawn=True)
        given = given_division(rows, self.split_column, self.root)
        return self.with_val({split: take(items, at) for split, at in given.items()})

    def training_pairs(self) -> Pairs:
        """Those of the list."""
        return ListedPairs(self.items("train"))

    def all_pairs(self, split: str) -> Sequence[Pair]:
        """Those of the list."""
        return self.items(split)

    def pairs_to_score(self, split: str) -> Sequence[Pair]:
        """Those of the list, or a seeded choice of them."""
        pairs = self.items(split)
        chosen = np.random.default_rng(self.seed).permutation(len(pairs))[: self.scored_pairs]
        return take(pairs, np.sort(chosen))
