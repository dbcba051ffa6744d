"""Volumes with masks: cases and their checks.

Axes are (slices, rows, columns): from the feet to the head, from front to back, from the patient's
right to the left, whatever their order in the files.

Sizes: D x H x W voxels, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import check_grids
from vimamba.data.items import OneImage, relative_name
from vimamba.data.masked.labels import LabelTable, whole_numbers
from vimamba.data.volume_files import ORDER, Volume, align_volume, open_volume, volume_limits


@dataclass(frozen=True)
class VolumeCase(OneImage):
    """A volume of one or several channels, and its mask.

    Attributes:
        paths: One file per channel, or one with channels on a fourth axis.
        mask_path: The mask; None if there is none yet.
        root: Folder that names are relative to.
        group: Cases of one group, such as a patient, are never in two splits.
        align: Resample files on another grid onto that of the first.
    """

    paths: tuple[Path, ...]
    mask_path: Path | None
    root: Path
    group: str = ""
    align: bool = False

    @property
    def name(self) -> str:
        """Path of the first file."""
        return relative_name(self.paths[0], self.root)

    @property
    def case(self) -> str:
        """The volume itself."""
        return self.name

    @property
    def mask_name(self) -> str:
        """Path of the mask."""
        return relative_name(self.mask_path, self.root) if self.mask_path else ""

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the mask."""
        return self.mask_name

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W)."""
        return tuple(open_volume(self.paths[0]).grid.shape[axis] for axis in ORDER["axial"])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel spacing along the three axes in millimeters."""
        return tuple(open_volume(self.paths[0]).spacing[axis] for axis in ORDER["axial"])

    def voxels(self, where: tuple[slice, ...] = ()) -> NDArray[np.float32]:
        """(D, H, W, C), scaled by the files' slope and intercept.

        Args:
            where: Range of slices, rows and columns.
        """
        parts = [self._read(path, where) for path in self.paths]
        whole = [part.reshape(*part.shape[:3], -1) for part in parts]
        return whole[0] if len(whole) == 1 else np.concatenate(whole, axis=3)

    def part(self, *where: slice) -> "VolumePart":
        """Some of its slices, rows and columns as an image."""
        return VolumePart(self, where)

    def image(self, wanted: int | None = None) -> NDArray[np.float32]:
        """(D * H, W, C): the slices stacked along rows, for code that works pixel by pixel."""
        return self.part().image()

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the values of each channel, (C,) each."""
        return volume_limits(self.paths, percentiles)

    def mask(self) -> NDArray:
        """(D, H, W) integers, as stored."""
        assert self.mask_path is not None
        return whole_numbers(self._place(self.mask_path, nearest=True), self.mask_name)

    def classes(self, table: LabelTable) -> NDArray[np.uint8]:
        """(D, H, W) classes and `IGNORE`."""
        stored = self.mask()
        flat = stored.reshape(-1, stored.shape[2])
        return table.indices(flat, self.mask_name).reshape(stored.shape)

    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        _, rows, columns = self.shape
        return rows, columns

    def check(self) -> None:
        """Fail unless the files can be read and share one grid.

        Raises:
            DataError: The message names the files and what is wrong.
        """
        first = open_volume(self.paths[0])
        others = [*self.paths[1:], *([self.mask_path] if self.mask_path else [])]
        for path in others:
            grid = open_volume(path).grid
            check_grids(first.grid, grid, self.paths[0], path, align=self.align)
        if self.mask_path is not None and open_volume(self.mask_path).channels > 1:
            shape = open_volume(self.mask_path).stored.shape
            raise DataError(
                f"mask {self.mask_path} has the shape {shape}, expected 3 axes, one class per voxel"
            )

    @property
    def channels(self) -> int:
        """Channels of all files together."""
        return sum(open_volume(path).channels for path in self.paths)

    def _open(self, path: Path, *, nearest: bool) -> Volume:
        if self.align:
            return align_volume(path, self.paths[0], nearest=nearest)
        return open_volume(path)

    def _place(
        self, path: Path, where: tuple[slice, ...] = (), *, nearest: bool = False
    ) -> NDArray:
        """(D, H, W[, C]) of one file, scaled."""
        volume = self._open(path, nearest=nearest)
        reoriented = volume.stored.transpose(*ORDER["axial"], *range(3, volume.stored.ndim))
        return volume.scale(reoriented[where])

    def _read(self, path: Path, where: tuple[slice, ...]) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._place(path, where), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class VolumePart(OneImage):
    """Some slices, rows and columns of a volume.

    Attributes:
        case: The volume.
        where: Which along each axis; all along those that are not named.
    """

    case: VolumeCase
    where: tuple[slice, ...]

    @property
    def name(self) -> str:
        """That of the volume."""
        return self.case.name

    def image(self, wanted: int | None = None) -> NDArray[np.float32]:
        """(d * h, w, C): the slices below each other, for what treats every pixel alike."""
        voxels = self.case.voxels(self.where)
        return voxels.reshape(-1, *voxels.shape[2:])

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the values of the whole volume."""
        return self.case.limits(percentiles)
