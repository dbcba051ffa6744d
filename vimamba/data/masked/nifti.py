"""NIfTI volumes, cut into slices on demand.

Layouts: `{images,masks}/case.nii.gz` with or without train, val and test as in `mask_folder`, and
those of nnU-Net and the Medical Segmentation Decathlon: `imagesTr/case[_0000].nii.gz` with
`labelsTr/case.nii.gz` (imagesTs and labelsTs, if both exist, are the test split).

An axial slice shows the patient from below with the front up: rows run from front to back, columns
from the patient's right to the left, whatever the order of the file's axes (`volume_files`).
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import check_grids
from vimamba.data.items import Catalogue, OneImage, relative_name
from vimamba.data.listing import check_files, subfolders
from vimamba.data.masked.labels import whole_numbers
from vimamba.data.masked.mask_folder import MaskFolder
from vimamba.data.masked.matching import by_name, match_names
from vimamba.data.pixels import select_bands
from vimamba.data.remarks import Remarks, some
from vimamba.data.volume_files import (
    ORDER,
    Axis,
    affines_differ,
    align_volume,
    list_volumes,
    open_volume,
    stem,
    volume_limits,
)


def volume_mask(path: Path, axis: Axis) -> NDArray:
    """All slices of a mask, (slices, rows, columns) integers."""
    return np.stack([item.mask() for item in cut_volume([path], path, axis, path.parent)])


@dataclass(frozen=True)
class VolumeSlice(OneImage):
    """A slice of a volume and of its mask.

    Attributes:
        paths: One file per channel, or one with channels on a fourth axis.
        mask_path: The mask; None if there is none yet.
        axis: Slicing axis.
        place: Index of the slice.
        root: Folder that names are relative to.
        align: Resample files on another grid onto that of the first.
    """

    paths: tuple[Path, ...]
    mask_path: Path | None
    axis: Axis
    place: int
    root: Path
    align: bool = False

    @property
    def name(self) -> str:
        """Path of the volume and index of the slice."""
        return f"{relative_name(self.paths[0], self.root)}[{self.place}]"

    @property
    def mask_name(self) -> str:
        """Path of the mask and index of the slice."""
        return f"{relative_name(self.mask_path, self.root)}[{self.place}]" if self.mask_path else ""

    @property
    def case(self) -> str:
        """The volume."""
        return relative_name(self.paths[0], self.root)

    @property
    def group(self) -> str:
        """The volume."""
        return self.case

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the mask."""
        return self.mask_name

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimeters between (slices, rows, columns)."""
        found = open_volume(self.paths[0]).spacing
        return tuple(found[axis] for axis in ORDER[self.axis])

    def _cut(self, path: Path, *, nearest: bool = False) -> NDArray:
        """(H, W) or (H, W, C) of one file, scaled."""
        if self.align:
            volume = align_volume(path, self.paths[0], nearest=nearest)
        else:
            volume = open_volume(path)
        # (slices, rows, columns[, channels])
        slices = volume.stored.transpose(*ORDER[self.axis], *range(3, volume.stored.ndim))
        if self.place >= len(slices):
            raise DataError(f"volume {path} has {len(slices)} slices; {self.name} does not exist")
        return volume.scale(slices[self.place])

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, C) float32."""
        parts = [self._cut(path).astype(np.float32) for path in self.paths]
        return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)

    def mask(self) -> NDArray:
        """(H, W) integers."""
        assert self.mask_path is not None
        return whole_numbers(self._cut(self.mask_path, nearest=True), self.mask_name)

    def size(self) -> tuple[int, int]:
        """Height and width."""
        shape = open_volume(self.paths[0]).stored.shape
        _, rows, columns = (shape[axis] for axis in ORDER[self.axis])
        return rows, columns

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the values of the whole volume."""
        return volume_limits(self.paths, percentiles)


def cut_volume(
    paths: Sequence[Path],
    mask_path: Path | None,
    axis: Axis,
    root: Path,
    *,
    align: bool = False,
) -> list[VolumeSlice]:
    """All slices of a volume.

    Args:
        paths: One file per channel, or one with channels on a fourth axis.
        mask_path: The mask, if there is one.
        axis: Slicing axis.
        root: Folder that names are relative to.
        align: Resample files on another grid than the first.

    Raises:
        DataError: The files of the case are not on one grid; the message names both.
    """
    first = open_volume(paths[0]).grid
    for path in [*paths[1:], *([mask_path] if mask_path else [])]:
        check_grids(first, open_volume(path).grid, paths[0], path, align=align)
    if mask_path is not None and open_volume(mask_path).channels > 1:
        shape = open_volume(mask_path).stored.shape
        raise DataError(
            f"mask {mask_path} has the shape {shape}, expected 3 axes, one class per voxel"
        )
    count = first.shape[ORDER[axis][0]]
    return [
        VolumeSlice(tuple(paths), mask_path, axis, place, root, align) for place in range(count)
    ]


def group_channels(volumes: Sequence[Path], whole: Container[str]) -> dict[str, list[Path]]:
    """Group files by case: `case_0000`, `case_0001` are channels of one.

    Args:
        volumes: The files.
        whole: Names that are complete case names, whatever their ending.

    Raises:
        DataError: Two files are the same channel of a case, or cases have different channels.
    """
    found: dict[str, list[Path]] = {}
    channels: dict[str, list[str]] = {}
    for stemmed, path in by_name(volumes, stem).items():
        name, _, channel = stemmed.rpartition("_")
        if len(channel) != 4 or not channel.isdecimal() or stemmed in whole:
            name, channel = stemmed, ""
        found.setdefault(name, []).append(path)
        channels.setdefault(name, []).append(channel or "0000")
    first = next(iter(channels), "")
    for name, numbers in channels.items():
        if numbers != channels[first]:
            raise DataError(
                f"{first} has the channels {channels[first]}, {name} has {numbers}: "
                f"{found[first][0]}, {found[name][0]}"
            )
    return found


class NiftiFolder(MaskFolder):
    """Folders of NIfTI volumes and masks; see the module for the layouts.

    A subclass defines the items of a volume in `items_of`.

    Args:
        root: The folder.
        **kwargs: Arguments of `MaskFolder`.
    """

    def __init__(self, root: str, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)

    def read(self) -> Catalogue:
        """Find the volumes."""
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        named = {path.name: path for path in subfolders(self.root)}
        if "imagesTr" not in named:
            return super().read()
        train = self.pair(named["imagesTr"], self.root / "labelsTr")
        tests, masks = named.get("imagesTs"), None
        if tests is not None:
            masks = self.find_masks("test", tests, named.get("labelsTs"))
        if tests is not None and masks is not None:
            return self.with_val({"train": train, "test": self.pair(tests, masks)})
        return Catalogue(self.divide(train), drawn=True)

    def list_files(self, folder: Path, remarks: Remarks | None = None) -> list[Path]:
        """Volumes of a folder."""
        return list_volumes(folder, remarks)

    def items_of(self, paths: Sequence[Path], mask: Path) -> Sequence[Any]:
        """The items of a volume, one file per channel or all channels in one, and its mask."""
        raise NotImplementedError

    def pair(self, images: Path, masks: Path) -> tuple[Any, ...]:
        """Items of all volumes of a folder with their masks."""
        if not masks.is_dir():
            raise DataError(f"there is no folder {masks}")
        mask_files = by_name(
            self.list_files(masks, self.remarks),
            lambda path: stem(path).removesuffix(self.mask_suffix),
        )
        image_files = group_channels(self.list_files(images, self.remarks), mask_files)
        if not image_files:
            raise DataError(f"folder {images} holds no volume")
        match_names(image_files, mask_files, images, masks)
        check_files([*mask_files.values(), *(p for ps in image_files.values() for p in ps)])
        return tuple(
            item
            for name, paths in image_files.items()
            for item in self.items_of(paths, mask_files[name])
        )


class NiftiSlices(NiftiFolder):
    """NIfTI volumes slice by slice; see the module for the layouts.

    Args:
        root: The folder.
        axis: Slicing axis: axial, coronal or sagittal.
        labeled_only: Train only on slices with a value other than 0.
        in_chans: Channels: one per file of a case, or those on a fourth axis.
        **kwargs: Arguments of `MaskFolder`.
    """

    def __init__(
        self,
        root: str,
        *,
        axis: Axis = "axial",
        labeled_only: bool = False,
        in_chans: int = 1,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, in_chans=in_chans, **kwargs)
        self.axis: Axis = axis
        self.labeled_only = labeled_only
        self._odd: list[str] = []

    def read(self) -> Catalogue:
        """Find the volumes and cut them."""
        found = super().read()
        if self.labeled_only and "train" in found.splits:
            found.splits["train"] = tuple(s for s in found.splits["train"] if s.mask().any())
        return found

    def pair(self, images: Path, masks: Path) -> tuple[VolumeSlice, ...]:
        """Slices of all volumes of a folder with those of their masks."""
        self._odd = []
        items = super().pair(images, masks)
        if self._odd:
            text = f"the qform and the sform of {len(self._odd)} volumes differ"
            self.remarks.say(f"{text}; the sform is used ({some(self._odd)})")
        return items

    def items_of(self, paths: Sequence[Path], mask: Path) -> list[VolumeSlice]:
        """Slices of a volume with those of its mask."""
        items = cut_volume(paths, mask, self.axis, self.root, align=self.align)
        odd = (path for path in (*paths, mask) if affines_differ(open_volume(path)))
        self._odd += [relative_name(path, self.root) for path in odd]
        have = sum(open_volume(path).channels for path in paths)
        select_bands(np.zeros((1, 1, have)), self.in_chans, self.bands, f"volume {paths[0]}")
        return items
