"""Folders of volumes with masks: matched by name, or in the form of nnU-Net, Decathlon, AMOS.

`{images,masks}/case.nii.gz`, with or without train, val and test; `imagesTr/case[_0000].nii.gz` and
`labelsTr/case.nii.gz`, several channels as `case_0000`, `case_0001` or on a fourth axis. If there
is a `dataset.json`, its class names, modality and file lists are used.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.listing import check_files, find_file
from vimamba.data.masked.nifti import NiftiFolder
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.data import VolumeData

DESCRIPTION = "dataset.json"


class VolumeFolder(VolumeData, NiftiFolder):  # type: ignore[misc]
    """Folders of volumes and masks; see the module for the layouts.

    Args:
        root: The folder.
        **kwargs: Arguments of `VolumeData` and of `MaskFolder`.
    """

    def __init__(self, root: str, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)
        file = self.root / DESCRIPTION
        self.description = read_description(file) if file.is_file() else {}
        if self.description:
            self._take_description(file)

    def _take_description(self, file: Path) -> None:
        """Use classes and modality of a dataset.json, unless given."""
        modalities = self.description.get("channel_names") or self.description.get("modality") or {}
        names = modalities.values() if isinstance(modalities, dict) else modalities
        self.is_ct = [str(name).lower() for name in names] == ["ct"]
        labels = self.description.get("labels")
        given = self.labels
        if given.classes is None and given.values is None and isinstance(labels, dict) and labels:
            self.labels = replace(given, **classes_of(labels, file))

    def read(self) -> Catalogue:
        """Find the cases: those in a dataset.json, or those in the folders."""
        if not isinstance(self.description.get("training"), list):
            return super().read()
        listed = self.description
        train = self._listed(listed["training"])
        if listed.get("validation") and all(
            isinstance(entry, dict) for entry in listed["validation"]
        ):
            return self.with_val({"train": train, "test": self._listed(listed["validation"])})
        return Catalogue(self.divide(train), drawn=True)

    def _listed(self, entries: Sequence[Any]) -> tuple[VolumeCase, ...]:
        """Cases from a list of {"image": ..., "label": ...}."""
        cases = []
        for entry in entries:
            if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
                raise DataError(f"{self.root / DESCRIPTION}: {entry!r} has no image and label")
            files = [self.root / str(entry[key]) for key in ("image", "label")]
            for path in files:
                if find_file(path) is None:
                    raise DataError(f"{self.root / DESCRIPTION} lists {path}, which does not exist")
            check_files(files)
            cases.append(VolumeCase((files[0],), files[1], self.root, align=self.align))
        return tuple(cases)

    def items_of(self, paths: Sequence[Path], mask: Path) -> list[VolumeCase]:
        """The case for some files."""
        return [VolumeCase(tuple(paths), mask, self.root, align=self.align)]


def read_description(file: Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        DataError: It is not a valid one.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} must be a mapping")
    return content


def classes_of(labels: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Classes, values and the ignored value of a dataset.json's labels.

    The Decathlon writes {"1": "liver"}, nnU-Net {"liver": 1}.

    Raises:
        DataError: They are regions, or not whole numbers.
    """
    pairs = labels.items()
    if all(str(key).isdecimal() for key in labels):
        found = {str(name): int(key) for key, name in pairs}
    elif all(isinstance(value, int) for value in labels.values()):
        found = {str(name): value for name, value in pairs}
    else:
        raise DataError(
            f"{file}: labels={dict(labels)} are not classes of one value each; set them with "
            "data.labels.classes and data.labels.values, and regions with data.regions"
        )
    ignored = found.pop("ignore", 255)
    ordered = sorted(found, key=lambda name: found[name])
    return {"classes": ordered, "values": [found[name] for name in ordered], "ignore": ignored}
