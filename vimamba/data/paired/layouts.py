"""Folder layouts of published change-detection data sets.

A layout names the folders of each part of a pair; parts are matched by file name, never by position
in a list. Splits are folders (`train`, `val`, `test`), or lists of names (`list/train.txt`,
`train.txt`) next to the folders or above them, or the first word of each name (`train_1.png`); if
there are none, a split is made.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from vimamba.data.errors import DataError
from vimamba.data.listing import check_files, composed, list_images, subfolders
from vimamba.data.lists import read_lines
from vimamba.data.masked.matching import by_name
from vimamba.data.paired.items import DatePair
from vimamba.data.remarks import Remarks, some
from vimamba.data.splits import SPLIT_WORDS

Kind = Literal["binary", "semantic", "damage"]
Preset = Literal[
    "levir", "levir_plus", "mambacd", "list", "whu", "s2looking", "sysu", "second", "xbd"
]
DATES = ("before", "after")
# possible files with a split's names; the braces are replaced by the split
LISTS = ("list/{}.txt", "{}.txt", "{}_list.txt")
# in addition to the usual names: xBD's second training part, and its held-out part
FOLDER_WORDS = {**SPLIT_WORDS, "tier3": "train", "hold": "val"}
# names of the classes and their colors in SECOND (Yang et al. 2020, arXiv:2010.05687)
SECOND: dict[str, list[int]] = {
    "unchanged": [255, 255, 255],
    "ground": [128, 128, 128],
    "tree": [0, 255, 0],
    "low vegetation": [0, 128, 0],
    "water": [0, 0, 255],
    "building": [128, 0, 0],
    "playground": [255, 0, 0],
}
XBD = ["background", "no damage", "minor damage", "major damage", "destroyed"]


@dataclass(frozen=True)
class Part:
    """Location of one part of the pairs.

    Attributes:
        folder: Name of its folder, case-insensitive.
        ending: Ending of its file names after the pair's name, before the suffix.
        optional: The part may be missing.
    """

    folder: str
    ending: str = ""
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Layout:
    """Folders of a data set, by the part of a pair.

    Attributes:
        kind: Kind of the labels.
        parts: "before" and "after", and labels: "change" for a binary or semantic set, "labels
            before" and "labels after" for a semantic one, "damage" and "buildings" for damage.
        notes: A folder of files with additional information: xBD's building outlines.
    """

    kind: Kind
    parts: Mapping[str, Part]
    notes: str = ""


def _binary(before: str, after: str, change: str) -> Layout:
    parts = {"before": Part(before), "after": Part(after), "change": Part(change)}
    return Layout("binary", parts)


def _semantic(*folders: str, change: str) -> Layout:
    before, after, labels_before, labels_after = map(Part, folders)
    return Layout(
        "semantic",
        {
            "before": before,
            "after": after,
            "labels before": labels_before,
            "labels after": labels_after,
            "change": Part(change, optional=True),
        },
    )


_A_B = _binary("A", "B", "label")
# for a preset with several layouts, the first one whose folders exist is used
PRESETS: dict[str, tuple[Layout, ...]] = {
    "levir": (_A_B,),
    "levir_plus": (_A_B,),
    "mambacd": (
        _semantic("T1", "T2", "GT_T1", "GT_T2", change="GT_CD"),
        _binary("T1", "T2", "GT"),
    ),
    "list": (_A_B,),
    "whu": (_A_B,),
    "s2looking": (_binary("Image1", "Image2", "label"),),
    "sysu": (_binary("time1", "time2", "label"),),
    "second": (
        _semantic("T1", "T2", "GT_T1", "GT_T2", change="GT_CD"),
        _semantic("im1", "im2", "label1", "label2", change="label"),
    ),
    "xbd": (
        Layout(
            "damage",
            {
                "before": Part("images", "_pre_disaster"),
                "after": Part("images", "_post_disaster"),
                "damage": Part("targets", "_post_disaster_target"),
                "buildings": Part("targets", "_pre_disaster_target", optional=True),
            },
            notes="labels",
        ),
    ),
}


# common names of users' own folders of pairs
OWN = tuple(
    _binary(*dates, masks)
    for dates in (("before", "after"), ("A", "B"))
    for masks in ("masks", "mask", "labels", "label", "change")
)


@dataclass(frozen=True)
class Named:
    """Names of folders that go before those of a layout.

    Attributes:
        before: Of the first date.
        after: Of the second date.
        masks: One of labels of change, or two of the labels of either date.
    """

    before: str | None = None
    after: str | None = None
    masks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.masks is not None and len(self.masks) not in (1, 2):
            raise DataError(
                f"masks={list(self.masks)} must be one folder, of change, or two, of the dates"
            )

    @property
    def folders(self) -> dict[str, str]:
        """The names by the part of a pair."""
        found = {"before": self.before, "after": self.after}
        masks = self.masks or ()
        roles = ("change",) if len(masks) == 1 else ("labels before", "labels after")
        found |= dict(zip(roles, masks, strict=False))
        return {role: name for role, name in found.items() if name is not None}

    def put_into(self, layouts: Sequence[Layout]) -> tuple[Layout, ...]:
        """The layouts that have these parts, with these names; without any name all as they are."""
        if not self.folders:
            return tuple(layouts)
        found = []
        for layout in layouts:
            needed = {role for role, part in layout.parts.items() if not part.optional}
            # files in one folder are distinguished by their endings, not by the folder's name
            if not self.folders.keys() <= needed or any(p.ending for p in layout.parts.values()):
                continue
            renamed = {role: Part(name) for role, name in self.folders.items()}
            found.append(Layout(layout.kind, {**layout.parts, **renamed}))
        return tuple(found)


def find_layout(root: Path, preset: Preset | None, named: Named) -> Layout:
    """The layout of a folder: the preset's, or the first one whose folders exist.

    Args:
        root: The folder.
        preset: A key of `PRESETS`.
        named: Names of folders that are not the layout's.

    Raises:
        DataError: None fits; the message names the expected folders.
    """
    if not root.is_dir():
        raise DataError(f"root={str(root)!r} is not a folder")
    if preset is not None and preset not in PRESETS:
        raise DataError(f"layout={preset!r} is unknown; choose from {sorted(PRESETS)}")
    known = PRESETS[preset] if preset else dict.fromkeys((*chain(*PRESETS.values()), *OWN))
    wanted = named.put_into(list(known))
    if not wanted:
        raise DataError(f"layout={preset!r} has no folders {list(named.folders)} to be named")
    for folder in (root, *subfolders(root)):
        for layout in wanted:
            wished = {role for role, part in layout.parts.items() if not part.optional}
            if wished <= folders_of(folder, layout).keys():
                return layout
    looked_for = (
        " and ".join(dict.fromkeys(p.folder for p in layout.parts.values() if not p.optional))
        for layout in wanted
    )
    raise DataError(
        f"root={str(root)!r} has no folders {'; '.join(dict.fromkeys(looked_for))}, either "
        "directly or in folders train, val and test; name yours: data.before, data.after, "
        "data.masks"
    )


def folders_of(folder: Path, layout: Layout) -> dict[str, Path]:
    """The existing folders of the parts."""
    named = {path.name.lower(): path for path in reversed(subfolders(folder))}
    return {
        role: named[part.folder.lower()]
        for role, part in layout.parts.items()
        if part.folder.lower() in named
    }


def find_pairs(
    root: Path, layout: Layout, remarks: Remarks
) -> tuple[dict[str, tuple[DatePair, ...]], bool]:
    """All pairs with labels.

    Args:
        root: The folder.
        layout: Its layout.
        remarks: Receives what is skipped.

    Returns:
        Pairs by split, and whether there are splits; if not, all are "train".

    Raises:
        DataError: Files do not match, are empty, or missing; the message names them.
    """
    parts: dict[str, list[Path]] = {}
    for folder in subfolders(root):
        split = FOLDER_WORDS.get(folder.name.lower())
        if split is not None and {*DATES} <= folders_of(folder, layout).keys():
            parts.setdefault(split, []).append(folder)
    if parts:
        splits = {
            split: sum((pair_folder(one, root, layout, split, remarks) for one in folders), ())
            for split, folders in parts.items()
        }
        return {split: pairs for split, pairs in keep_listed(root, splits).items() if pairs}, True
    return divide_names(root, pair_folder(root, root, layout, "train", remarks))


def pair_folder(
    folder: Path, root: Path, layout: Layout, split: str, remarks: Remarks
) -> tuple[DatePair, ...]:
    """The pairs of one folder; none for a test split without labels."""
    places = folders_of(folder, layout)
    files = {role: files_of(path, layout.parts[role], remarks) for role, path in places.items()}
    files = {r: found for r, found in files.items() if found or not layout.parts[r].optional}
    missing = [r for r, part in layout.parts.items() if not (part.optional or files.get(r))]
    if missing:
        named = ", ".join(layout.parts[role].folder for role in missing)
        if split != "test" or {*missing} & {*DATES}:
            raise DataError(f"{folder} holds no images in {named}; they are the {missing[0]}")
        count = len(files["before"])
        remarks.say(f"{folder}: {count} pairs without labels, not scored; see `predict`")
        return ()
    check_match(files, places)
    check_files(path for found in files.values() for path in found.values())
    notes = folder / layout.notes if layout.notes else None
    return tuple(
        DatePair(
            stem,
            {role: found[stem] for role, found in files.items()},
            root,
            None if notes is None else notes / f"{stem}_post_disaster.json",
        )
        for stem in files["before"]
    )


def files_of(folder: Path, part: Part, remarks: Remarks) -> dict[str, Path]:
    """Files of a part by pair name."""
    # if names end in the kind of part, the folder also has files of other parts
    images = list_images(folder, None if part.ending else remarks)
    stems = {path: path.relative_to(folder).with_suffix("").as_posix() for path in images}
    kept = [path for path, stem in stems.items() if stem.endswith(part.ending)]
    return by_name(kept, lambda path: stems[path].removesuffix(part.ending))


def check_match(files: Mapping[str, Mapping[str, Path]], places: Mapping[str, Path]) -> None:
    """Fail unless all parts have the same names.

    Raises:
        DataError: The message says what is missing where.
    """
    every = set().union(*files.values())
    troubles = [
        f"{places[role]} lacks {some(every - found.keys())}"
        for role, found in files.items()
        if every - found.keys()
    ]
    if troubles:
        raise DataError(f"files do not match by name: {'; '.join(troubles)}")


def list_file(root: Path, split: str) -> Path | None:
    """The list of a split's names, if there is one."""
    words = [word for word, meant in SPLIT_WORDS.items() if meant == split]
    places = (root / form.format(word) for word in words for form in LISTS)
    return next((path for path in places if path.is_file()), None)


def listed(path: Path, pairs: Sequence[DatePair]) -> tuple[DatePair, ...]:
    """The pairs in a list, in its order, by the first word of each line.

    Raises:
        DataError: A name does not exist, or is listed twice.
    """
    known = {composed(pair.stem): pair for pair in pairs}
    names = [composed(re.split(r"[\s,;]", line)[0]) for line in read_lines(path)]
    # some lists have file names, some stems, some with the folder in front
    stems = [name if name in known else Path(name).with_suffix("").name for name in names]
    missing = [name for name, stem in zip(names, stems, strict=True) if stem not in known]
    if missing:
        raise DataError(f"{path} lists pairs that do not exist: {some(missing)}")
    if len(set(stems)) < len(stems):
        raise DataError(f"{path} names {some({s for s in stems if stems.count(s) > 1})} twice")
    return tuple(known[stem] for stem in stems)


def keep_listed(
    root: Path, splits: Mapping[str, tuple[DatePair, ...]]
) -> dict[str, tuple[DatePair, ...]]:
    """For splits in folders, keep the pairs in their lists, if there are lists."""
    found = {}
    for split, pairs in splits.items():
        path = list_file(root, split)
        found[split] = pairs if path is None else listed(path, pairs)
    return found


def divide_names(
    root: Path, pairs: tuple[DatePair, ...]
) -> tuple[dict[str, tuple[DatePair, ...]], bool]:
    """Split the pairs of one folder by lists or by the first word of names; else all "train".

    Raises:
        DataError: A pair is in two lists.
    """
    lists = {split: list_file(root, split) for split in ("train", "val", "test")}
    if any(lists.values()):
        splits = {split: listed(path, pairs) for split, path in lists.items() if path}
        stems = [pair.stem for part in splits.values() for pair in part]
        if twice := {stem for stem in stems if stems.count(stem) > 1}:
            raise DataError(f"root={str(root)!r}: {some(twice)} in the lists of two splits")
        return splits, True
    words = [SPLIT_WORDS.get(re.split(r"[_-]", pair.stem)[0].lower()) for pair in pairs]
    if None in words:
        return {"train": pairs}, False
    return {
        split: tuple(pair for pair, word in zip(pairs, words, strict=True) if word == split)
        for split in dict.fromkeys(word for word in words if word)
    }, True
