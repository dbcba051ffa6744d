"""Images in one folder per class, with or without folders for the splits.

Either `root/{train,val,test}/<class>/*.png` or `root/<class>/*.png`. In the second layout, and if
there is train but no val, a stratified, seeded split is made.
"""

from collections.abc import Sequence
from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.labelled.classification import ClassificationData
from vimamba.data.labelled.items import LabelledFile
from vimamba.data.listing import check_distinct, check_files, composed, list_images, subfolders
from vimamba.data.remarks import Remarks
from vimamba.data.splits import SPLITS, split_folders


def class_folders(folder: Path, remarks: Remarks | None = None) -> dict[str, Path]:
    """Subfolders by class, in natural order."""
    folders = subfolders(folder, remarks)
    check_files(folders)
    check_distinct((path.name for path in folders), folder)
    return {composed(path.name): path for path in folders}


def read_classes(
    folder: Path,
    classes: Sequence[str],
    root: Path,
    remarks: Remarks | None = None,
    *,
    complete: bool = False,
) -> tuple[LabelledFile, ...]:
    """Read `folder/<class>/**/image`.

    Args:
        folder: Contains one folder per class.
        classes: In the order of the labels; some may have no folder.
        root: Folder that names are relative to.
        remarks: Receives what is skipped.
        complete: No class may be empty.
    """
    found = class_folders(folder, remarks)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise DataError(f"{folder}: {unknown} are not among the classes {list(classes)}")
    items: list[LabelledFile] = []
    for label, name in enumerate(classes):
        images = list_images(found[name], remarks) if name in found else []
        if complete and not images:
            raise DataError(f"class folder {folder / name} holds no image")
        items += [LabelledFile(path, root, label) for path in images]
    if not items:
        raise DataError(f"root={str(root)!r}: {folder} holds no image")
    check_files(item.path for item in items)
    return tuple(items)


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
        """Read `root` in either layout."""
        if not root.is_dir():
            raise DataError(f"root={str(root)!r} is not a folder")
        folders = subfolders(root)
        if not folders:
            raise DataError(f"root={str(root)!r} has no class folders; expected <class>/<image>")
        given = split_folders(folders)
        # a class can be called test, so without train all folders must be splits
        if "train" not in given and len(given) < len(folders):
            names = self.classes or list(class_folders(root))
            items = read_classes(root, names, root, self.remarks, complete=self.classes is None)
            return Catalogue(self.divide(items), True, tuple(names))
        for path in subfolders(root, self.remarks):
            if path not in given.values():
                self.remarks.leave_out("folder", path.relative_to(root.parent))
        ordered = [split for split in SPLITS if split in given]
        names = self.classes or list(class_folders(given[ordered[0]]))
        parts = {
            split: read_classes(
                given[split],
                names,
                root,
                self.remarks,
                complete=self.classes is None and split == ordered[0],
            )
            for split in ordered
        }
        splits = self.pool_for_fold(parts)
        drawn = self.split_csv is not None or ("train" in splits and "val" not in splits)
        return Catalogue(self.hold_out(splits) if drawn else splits, drawn, tuple(names))
