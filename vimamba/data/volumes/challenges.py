"""BraTS and ACDC in their original form: a folder per patient."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.listing import check_files, subfolders
from vimamba.data.masked.labels import DEFAULT_LABELS, Labels
from vimamba.data.remarks import some
from vimamba.data.splits import split_folders
from vimamba.data.volume_files import list_volumes, stem
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.data import VolumeData

# names of the modalities in 2018 to 2021 and from 2023 on, in the order T1, T1 with contrast
# agent, T2, FLAIR
BRATS_NAMES = (("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f"))
BRATS_CLASSES = ["background", "necrotic core", "edema", "enhancing tumor"]


class BraTS(VolumeData):
    """Brain tumors in MRI of four modalities, any year from 2018 on.

    `<case>/<case>_{t1,t1ce,t2,flair,seg}.nii[.gz]` has the value 4 for the enhancing tumor,
    `<case>/<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz` (2023 and later) 3. The regions whole tumor, tumor
    core and enhancing tumor are scored in addition to the classes. The scans of one patient
    (BraTS-GLI-00001-000, -001) stay together.

    Args:
        root: The folder of the cases, or one with train, val or test.
        labels: The data set's classes by default.
        regions: The usual three by default.
        **kwargs: Arguments of `VolumeData`.
    """

    def __init__(
        self,
        root: str,
        *,
        labels: Labels = DEFAULT_LABELS,
        regions: dict[str, list[int]] | None = None,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, labels=labels, regions=regions, **kwargs)
        self.is_ct = False
        # before anything is read, as a task is built on the classes
        recent = self.root.is_dir() and next(self.root.rglob("*-seg.nii*"), None)
        self._name_classes(3 if recent else 4)

    def read(self) -> Catalogue:
        """Find the folders of the cases."""
        return read_cases(self, self._cases)

    def _cases(self, folder: Path) -> list[VolumeCase]:
        found = []
        for place in subfolders(folder):
            files = {re.split(r"[_-]", stem(p))[-1].lower(): p for p in list_volumes(place)}
            names = next((n for n in BRATS_NAMES if set(n) <= files.keys()), None)
            if names is None or "seg" not in files:
                wanted = " or ".join(", ".join(names) for names in BRATS_NAMES)
                raise DataError(f"{place} holds {some(files)}; expected {wanted}, and seg")
            paths = tuple(files[name] for name in names)
            check_files([*paths, files["seg"]])
            patient = place.name
            if names is BRATS_NAMES[1]:
                patient = re.sub(r"-\d{3}$", "", patient)
            found.append(VolumeCase(paths, files["seg"], self.root, patient, self.align))
        return found

    def _name_classes(self, enhancing: int) -> None:
        """Set the classes and regions of the year, unless given."""
        if self.labels.classes is None and self.labels.values is None:
            values = [0, 1, 2, enhancing]
            self.labels = replace(self.labels, classes=BRATS_CLASSES, values=values)
        if self.regions is None:
            self.regions = {
                "whole tumor": [1, 2, enhancing],
                "tumor core": [1, enhancing],
                "region of enhancing tumor": [enhancing],
            }


class ACDC(VolumeData):
    """Hearts in MRI at the end of systole and of diastole (ACDC, 2017).

    `{training,testing}/patient001/patient001_frame01[_gt].nii.gz`; the sequences `_4d` are skipped.
    The two frames of a patient stay together.

    Args:
        root: The folder with training and testing, or with the patients.
        labels: Right ventricle, myocardium and left ventricle by default.
        **kwargs: Arguments of `VolumeData`.
    """

    def __init__(self, root: str, *, labels: Labels = DEFAULT_LABELS, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, labels=labels, **kwargs)
        self.is_ct = False
        if self.labels.classes is None and self.labels.values is None:
            names = ["background", "right ventricle", "myocardium", "left ventricle"]
            self.labels = replace(self.labels, classes=names, values=[0, 1, 2, 3])

    def read(self) -> Catalogue:
        """Find the frames with a mask."""
        return read_cases(self, self._cases)

    def _cases(self, folder: Path) -> list[VolumeCase]:
        found = []
        for place in subfolders(folder):
            files = {stem(path): path for path in list_volumes(place)}
            for name, path in files.items():
                if not re.search(r"_frame\d+$", name):
                    continue
                mask = files.get(f"{name}_gt")
                if mask is None:
                    raise DataError(f"{path} has no mask {name}_gt next to it")
                check_files([path, mask])
                found.append(VolumeCase((path,), mask, self.root, place.name, self.align))
        return found


def read_cases(data: VolumeData, cases: Callable[[Path], Sequence[VolumeCase]]) -> Catalogue:
    """Catalogue of folders of cases: one folder per split, or one for all.

    Args:
        data: The data set.
        cases: A function from a folder to its cases.
    """
    if not data.root.is_dir():
        raise DataError(f"root={str(data.root)!r} is not a folder")
    named = split_folders(subfolders(data.root))
    if named:
        return data.with_val({split: tuple(cases(folder)) for split, folder in named.items()})
    found = tuple(cases(data.root))
    if not found:
        raise DataError(f"root={str(data.root)!r} holds no case")
    return Catalogue(data.divide(found), drawn=True)
