"""Division of images into the parts of a cross-validation.

Sizes: N images, G groups, C classes.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError


def check_fold(fold: int | None, folds: int) -> None:
    """Fail on a fold that is none of `folds` parts."""
    if folds < 2:
        raise DataError(f"folds={folds} must be at least 2")
    if fold is not None and not 0 <= fold < folds:
        raise DataError(f"fold={fold} must lie in [0, {folds - 1}]")


def find_groups(pattern: str, names: Iterable[str]) -> list[str]:
    """Group of each name: what a regular expression finds in it, or what its first group does.

    Raises:
        DataError: It is no regular expression, or finds nothing in a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group_pattern={pattern!r} is no regular expression: {error}") from None
    groups = []
    for name in names:
        found = expression.search(name)
        group = found and found[min(expression.groups, 1)]
        if not group:
            raise DataError(f"group_pattern={pattern!r} fits nothing in {name}")
        groups.append(group)
    return groups


def split_fold(
    labels: NDArray, groups: Sequence[str] | None, fold: int, folds: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """One division of a cross-validation; every group is in the val split of exactly one fold.

    Args:
        labels: (N,) int64 or (N, C) multi-hot. Parts have the classes in nearly the same
            proportions; if all labels are equal, parts are as equal in groups as possible.
        groups: N group names; None: every image is a group.
        fold: Which part is val, from 0.
        folds: Number of parts.
        seed: Same seed, same parts.

    Returns:
        Sorted indices of "train" and "val".

    Raises:
        DataError: There are fewer groups than parts.
    """
    named = np.arange(len(labels)) if groups is None else np.asarray(groups)
    names, group_of = np.unique(named, return_inverse=True)
    if len(names) < folds:
        what = "images" if groups is None else "groups"
        raise DataError(f"{len(names)} {what} cannot be divided into folds={folds}")
    held = deal_groups(count_classes(labels, group_of, len(names)), folds, seed)[group_of] == fold
    return {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}


def count_classes(labels: NDArray, group_of: NDArray, size: int) -> NDArray[np.float64]:
    """Images of each class in each group, (G, C); one of one class where there are no classes."""
    if labels.ndim == 1:
        classes, labels = np.unique(labels, return_inverse=True)
        if len(classes) == 1:
            return np.ones((size, 1))
        labels = np.eye(len(classes))[labels]
    counts = np.zeros((size, labels.shape[1]))
    np.add.at(counts, group_of, labels)
    return counts


def deal_groups(counts: NDArray[np.float64], folds: int, seed: int) -> NDArray[np.int64]:
    """The part of each group, (G,): large groups first, each to the part that lacks its classes.

    Args:
        counts: (G, C).
        folds: Number of parts.
        seed: Decides between groups that are alike.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    shares = counts / counts.sum(0).clip(min=1)
    held, sizes = np.zeros((folds, counts.shape[1])), np.zeros(folds)
    part = np.empty(len(counts), dtype=np.int64)
    for group in order:
        # the sum over the classes of a part's excess, were the group to come to it
        excess = (held @ shares[group]).round(9)
        chosen = np.lexsort((sizes, excess))[0]
        part[group] = chosen
        held[chosen] += counts[group]
        sizes[chosen] += max(counts[group].sum(), 1)
    return part
