"""Splits images into the folds of a cross-validation.

Sizes: N images, G groups, C classes.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError


def check_fold(fold: int | None, folds: int) -> None:
    """Fail unless the fold is one of `folds` parts."""
    if folds < 2:
        raise DataError(f"folds={folds} must be at least 2")
    if fold is not None and not 0 <= fold < folds:
        raise DataError(f"fold={fold} must lie in [0, {folds - 1}]")


def find_groups(pattern: str, names: Iterable[str]) -> list[str]:
    """Group of each name: the match of a regular expression, or of its first group.

    Raises:
        DataError: It is not a regular expression, or does not match a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group_pattern={pattern!r} is not a regular expression: {error}") from None
    groups = []
    for name in names:
        found = expression.search(name)
        group = found and found[min(expression.groups, 1)]
        if not group:
            raise DataError(f"group_pattern={pattern!r} matches nothing in {name}")
        groups.append(group)
    return groups


def split_fold(
    labels: NDArray,
    groups: Sequence[str] | None,
    fold: int,
    folds: int,
    seed: int,
    *,
    once: bool = False,
) -> dict[str, NDArray[np.int64]]:
    """One split of a cross-validation; every group is in the val split of exactly one fold.

    Args:
        labels: (N,) int64 or (N, C) multi-hot. Class proportions are nearly equal in all parts; if
            all labels are equal, numbers of groups are as equal as possible.
        groups: N group names; None: every image is a group.
        fold: Index of the val part, from 0.
        folds: Number of parts.
        seed: Same seed, same parts.
        once: A class counts once in a group, however many of its images have it, and parts are as
            equal in groups as possible.

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
    counts = count_classes(labels, group_of, len(names))
    part = deal_groups(np.sign(counts) if once else counts, folds, seed, evenly=once)
    held = part[group_of] == fold
    return {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}


def count_classes(labels: NDArray, group_of: NDArray, size: int) -> NDArray[np.float64]:
    """Images of each class in each group, (G, C); without classes, groups count once."""
    if labels.ndim == 1:
        classes, labels = np.unique(labels, return_inverse=True)
        if len(classes) == 1:
            return np.ones((size, 1))
        labels = np.eye(len(classes))[labels]
    counts = np.zeros((size, labels.shape[1]))
    np.add.at(counts, group_of, labels)
    return counts


def deal_groups(
    counts: NDArray[np.float64], folds: int, seed: int, *, evenly: bool = False
) -> NDArray[np.int64]:
    """The part of each group, (G,): large groups first, each to the part most short of its classes.

    Args:
        counts: (G, C).
        folds: Number of parts.
        seed: Breaks ties between equal groups.
        evenly: Choose among the parts with the fewest groups.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    shares = counts / counts.sum(0).clip(min=1)
    held, sizes = np.zeros((folds, counts.shape[1])), np.zeros(folds)
    numbers = np.zeros(folds)
    part = np.empty(len(counts), dtype=np.int64)
    for group in order:
        # the sum over the classes of a part's excess if the group were added to it
        excess = (held @ shares[group]).round(9)
        fullness = numbers if evenly else np.zeros(folds)
        chosen = np.lexsort((sizes, excess, fullness))[0]
        part[group] = chosen
        numbers[chosen] += 1
        held[chosen] += counts[group]
        sizes[chosen] += max(counts[group].sum(), 1)
    return part
