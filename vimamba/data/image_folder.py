"""Images in one folder per class, with or without folders for the splits.

Either `root/{train,val,test}/<class>/*.png` or `root/<class>/*.png`. In the second form, and where
train has no val beside it, a stratified seeded division is drawn.
"""

from pathlib import Path

import numpy as np

from vimamba.data.classification import Catalogue, ClassificationData
from vimamba.data.errors import DataError
from vimamba.data.samples import FileSamples, Samples, list_images, natural_order
from vimamba.data.splits import SPLIT_WORDS, SPLITS


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in natural order."""
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: natural_order(path.name))


def read_classes(folder: Path, class_names: list[str] | None, root: Path) -> FileSamples:
    """Read `folder/<class>/**/image`.

    Args:
        folder: Holds one folder per class.
        class_names: The classes to expect; None takes what is there, and then none may be empty.
        root: Names are given relative to it.
    """
    names = [path.name for path in subfolders(folder)]
    unknown = sorted(set(names) - set(class_names or names))
    if unknown:
        raise DataError(f"{folder}: class {unknown} is not among the training classes")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names or names):
        images = list_images(folder / name) if name in names else []
        if not images and class_names is None:
            raise DataError(f"class folder {folder / name} holds no image")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise DataError(f"root={str(root)!r}: {folder} holds no image")
    return FileSamples(tuple(paths), np.asarray(labels, dtype=np.int64), root)


class ImageFolder(ClassificationData):
    """A folder of class folders; see the module for the layouts.

    Args:
        root: The folder.
        **kwargs: Arguments of `ClassificationData`.
    """

    def __init__(self, root: str, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)

    def read(self) -> Catalogue:
        """Find the class folders and their images."""
        return self.read_folder(self.root)

    def read_folder(self, root: Path) -> Catalogue:
        """Read `root` in whichever layout it has."""
        if not root.is_dir():
            raise DataError(f"root={str(root)!r} is not a folder")
        folders = subfolders(root)
        if not folders:
            raise DataError(f"root={str(root)!r} has no class folders; expected <class>/<image>")
        given = {SPLIT_WORDS[f.name.lower()]: f for f in folders if f.name.lower() in SPLIT_WORDS}
        # a class can be called test, so without train all folders must be splits
        if "train" not in given and len(given) < len(folders):
            samples = read_classes(root, None, root)
            names = tuple(f.name for f in folders)
            return Catalogue(names, False, self.divide(samples), True)
        first = next(split for split in SPLITS if split in given)
        names = [path.name for path in subfolders(given[first])]
        parts = {first: read_classes(given[first], None, root)}
        for split in sorted(set(given) - {first}):
            parts[split] = read_classes(given[split], names, root)
        splits: dict[str, Samples] = self.pool_for_fold(parts)
        drawn = first == "train" and "val" not in splits
        return Catalogue(tuple(names), False, self.hold_out(splits) if drawn else splits, drawn)
