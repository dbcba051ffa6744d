"""Finds files of equal content in different splits, whose scores are too good."""

import hashlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vimamba.data.items import Item, relative_name

# time for reading parts of files of equal size, seconds
BUDGET = 10.0
# bytes read at the start, in the middle and at the end of a file
PART = 1 << 14
# bytes read at a time of a whole file
BLOCK = 1 << 20
MOST_NAMED = 3


def describe_twins(
    splits: Mapping[str, Sequence[Item]], root: Path, budget: float = BUDGET
) -> list[str]:
    """Lines on files of equal content in different splits; none without such files.

    Args:
        splits: Items of each split.
        root: Folder that names are relative to.
        budget: Seconds after which further files of equal size are not compared.
    """
    held: dict[Path, set[str]] = {}
    for split, items in splits.items():
        for path in files_of(items):
            held.setdefault(path, set()).add(split)
    # a file that splits share on purpose, such as an atlas, is not a copy
    split_of = {path: found.pop() for path, found in held.items() if len(found) == 1}
    end, lines = time.monotonic() + budget, []

    def parts_in_time(path: Path) -> bytes | None:
        return _parts(path) if time.monotonic() < end else None

    of_one_size = list(_crossing([list(split_of)], _size, split_of))
    alike = list(_crossing(of_one_size, parts_in_time, split_of))
    twins = list(_crossing(alike, _content, split_of))
    if twins:
        named = [_pair(same, split_of, root) for same in twins[:MOST_NAMED]]
        more = len(twins) - MOST_NAMED
        rest = f" and {more} more" if more > 0 else ""
        lines.append(
            f"the same content in two splits: {', '.join(named)}{rest}; scores of what was seen "
            "in training are too good"
        )
    if time.monotonic() > end:
        count = sum(map(len, of_one_size))
        lines.append(f"{count} files of equal size in different splits: too many to compare all")
    return lines


def files_of(items: Iterable[Any]) -> Iterator[Path]:
    """The image files of items; none of images without files of their own."""
    for item in items:
        # not the images of a volume, its slices, which are found by opening it
        parts = (item,) if _paths(item) else getattr(item, "cases", None) or item.images()
        for part in parts:
            yield from _paths(part)


def _paths(part: Any) -> Sequence[Path]:
    path = getattr(part, "path", None)
    return getattr(part, "paths", ()) if path is None else (path,)


def _crossing(
    groups: Iterable[list[Path]], key: Callable[[Path], Hashable], split_of: Mapping[Path, str]
) -> Iterator[list[Path]]:
    """The parts of groups with equal keys that are in several splits; without files of key None."""
    for group in groups:
        parts: dict[Hashable, list[Path]] = {}
        for path in group:
            parts.setdefault(key(path), []).append(path)
        parts.pop(None, None)
        yield from (p for p in parts.values() if len({split_of[path] for path in p}) > 1)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # reported when the image is read
        return None


def _parts(path: Path) -> bytes | None:
    size = _size(path) or 0
    return _digest(path, (0, size // 2, max(size - PART, 0)), PART)


def _content(path: Path) -> bytes | None:
    return _digest(path, range(0, _size(path) or 0, BLOCK), BLOCK)


def _digest(path: Path, starts: Iterable[int], length: int) -> bytes | None:
    """Of parts of a file; None if it cannot be read."""
    found = hashlib.blake2b()
    try:
        with path.open("rb") as file:
            for start in starts:
                file.seek(start)
                found.update(file.read(length))
    except OSError:  # reported when the image is read
        return None
    return found.digest()


def _pair(same: Sequence[Path], split_of: Mapping[Path, str], root: Path) -> str:
    """Two of some files in different splits, by name."""
    first = same[0]
    second = next(path for path in same if split_of[path] != split_of[first])
    one, other = (f"{relative_name(p, root)} ({split_of[p]})" for p in (first, second))
    return f"{one} and {other}"
