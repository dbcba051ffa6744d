"""Seeded splits of labeled images into train, val and test, and their record split.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.items import Item
from vimamba.data.listing import composed
from vimamba.data.lists import Row, read_rows
from vimamba.data.remarks import Remarks
from vimamba.files import write_whole

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

Division = dict[str, NDArray[np.int64]]


def parts_of(size: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Number of `size` images in each held-out split: at least one, if there are three."""
    counts = {}
    for split, fraction in fractions.items():
        least = 1 if fraction > 0 and size >= 3 else 0
        counts[split] = max(least, round(size * fraction))
    return counts


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Fail unless every fraction is in [0, 1) and something is left for training."""
    for split, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise DataError(f"{split}_fraction={fraction} must lie in [0, 1)")
    if sum(fractions.values()) >= 1:
        raise DataError(f"nothing is left for training: fractions held out are {dict(fractions)}")


def split_stratified(labels: NDArray, fractions: Mapping[str, float], seed: int) -> Division:
    """Split so that all splits have the same class proportions.

    Multi-label data, whose combinations can be unique, is split at random.

    Args:
        labels: (N,) int64 or (N, C) multi-hot.
        fractions: Fractions held out for "val" and "test".
        seed: The same seed gives the same split.

    Returns:
        Sorted indices of each split.
    """
    check_fractions(fractions)
    rng = np.random.default_rng(seed)
    strata = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    chosen: dict[str, list[NDArray]] = {split: [] for split in ("train", *fractions)}
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        start = 0
        for split, count in parts_of(len(members), fractions).items():
            chosen[split].append(members[start : start + count])
            start += count
        chosen["train"].append(members[start:])
    return {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items() if parts}


def split_by_group(
    labels: NDArray, groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> Division:
    """Split so that no group (a patient, a scene) is in two splits; nearly stratified by class.

    Args:
        labels: (N,) int64 or (N, C) multi-hot.
        groups: N group names.
        fractions: Fractions held out for "val" and "test".
        seed: The same seed gives the same split.

    Returns:
        Sorted indices of each split.

    Raises:
        DataError: There are fewer groups than splits.
    """
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    check_fractions(fractions)
    names = np.asarray(groups)
    wanted = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    if len(set(groups)) < len(wanted) + 1:
        raise DataError(
            f"{len(set(groups))} groups cannot be divided into {len(wanted) + 1} splits; "
            f"set val_fraction or test_fraction to 0, or add groups"
        )
    division: Division = {}
    rest, left = np.arange(len(labels)), 1.0
    for split, fraction in wanted.items():
        folds = max(2, round(left / fraction))
        rare = labels.ndim > 1 or np.bincount(labels[rest]).max() < folds
        if rare or len(np.unique(names[rest])) < folds:
            chooser = GroupShuffleSplit(1, test_size=fraction / left, random_state=seed)
        else:
            chooser = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        keep, held = next(chooser.split(rest, labels[rest], names[rest]))
        division[split], rest = rest[held], rest[keep]
        left -= fraction
    return {"train": rest, **division}


def check_groups(division: Division, groups: Sequence[str]) -> None:
    """Fail if a group is in two splits, which would leak training data into the test."""
    seen: dict[str, str] = {}
    for split, indices in division.items():
        for index in indices:
            group = groups[int(index)]
            if seen.setdefault(group, split) != split:
                raise DataError(f"group {group!r} is in both {seen[group]!r} and {split!r}")


def write_split(
    path: Path, splits: Mapping[str, Sequence[Item]], class_names: Sequence[str]
) -> None:
    """Write columns path, label, split."""
    with write_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split, items in splits.items():
            for item in items:
                writer.writerow([item.name, item.target_text(class_names), split])


def read_split(path: Path, items: Sequence[Item], remarks: Remarks | None = None) -> Division:
    """Read split.csv and find each of its images among some items.

    Args:
        path: The file.
        items: All images.
        remarks: Receives a note on images that are not in the file.

    Raises:
        DataError: The file is missing, or lists an unknown image or one twice.
    """
    if not path.is_file():
        raise DataError(f"split_csv={str(path)!r} does not exist")
    rows = read_rows(path, ["path", "split"], remarks)
    names = [item.name for item in items]
    # copying between systems may change the encoding of accents in a name
    place = {composed(name).strip(): index for index, name in enumerate(names)}
    place |= {name: index for index, name in enumerate(names)}
    chosen: dict[int, str] = {}
    for row in rows:
        where, name = f"{path}, line {row.line}", row["path"]
        index = place.get(name, place.get(composed(name).strip()))
        if index is None:
            raise DataError(f"{where}: {name!r} is not in the data set")
        if index in chosen:
            raise DataError(f"{where}: {name!r} is listed twice")
        chosen[index] = split_word(row["split"], where)
    if remarks is not None and len(chosen) < len(names):
        left = next(name for index, name in enumerate(names) if index not in chosen)
        remarks.say(f"{len(names) - len(chosen)} images are not in {path} and left out ({left})")
    division: dict[str, list[int]] = {}
    for index, split in chosen.items():
        division.setdefault(split, []).append(index)
    return {split: np.asarray(indices, dtype=np.int64) for split, indices in division.items()}


def given_division(rows: Sequence[Row], column: str, source: Path) -> Division:
    """The split given by a column.

    Raises:
        DataError: A word is not a split; the message names the line.
    """
    words = [split_word(row[column], f"{source}, line {row.line}") for row in rows]
    return {word: np.flatnonzero(np.asarray(words) == word) for word in dict.fromkeys(words)}


def split_word(word: str, source: object) -> str:
    """The split for a word, such as val for `valid`."""
    split = SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        raise DataError(f"{source}: split {word!r} is unknown; use train, val or test")
    return split


def split_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders named after splits, by split.

    Raises:
        DataError: Two name the same split.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_WORDS.get(folder.name.lower())
        if split is not None and found.setdefault(split, folder) is not folder:
            raise DataError(f"{found[split]} and {folder} are both the {split} split")
    return found
