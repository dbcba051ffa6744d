"""Volumes and images for registration: values, labels and grids.

Volumes come with the axes (left, posterior, superior) whatever the order in the file, images with
(row, column).

Sizes: C channels, *grid the two or three axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import Grid, check_grids
from vimamba.data.items import FileImage, StoredImage, relative_name
from vimamba.data.masked.items import read_mask
from vimamba.data.masked.labels import gray_values, whole_numbers
from vimamba.data.masked.nifti import cut_volume
from vimamba.data.pixels import image_size, percentile_limits, read_pixels
from vimamba.data.volume_files import ENDINGS, Volume, align_volume, open_volume


def is_volume(path: Path) -> bool:
    """Whether a file is a NIfTI volume, by its suffix."""
    return path.name.lower().endswith(ENDINGS)


def grid_of(path: Path) -> Grid:
    """Grid of a file; for an image, in pixels from its first one.

    Raises:
        DataError: It cannot be read; the message names it.
    """
    if is_volume(path):
        return open_volume(path).grid
    height, width = image_size(path)
    return Grid((height, width), np.eye(3), "", f"{height} x {width} pixels")


def check_places(first: Path, other: Path, *, align: bool) -> None:
    """Fail unless two files share one grid, or the second can be resampled to the first's.

    Raises:
        DataError: The message names both.
    """
    here, there = grid_of(first), grid_of(other)
    if is_volume(first) != is_volume(other):
        raise DataError(f"{first} and {other}: one is a volume and one an image")
    if is_volume(first):
        check_grids(here, there, first, other, align=align)
    elif here.shape != there.shape:
        raise DataError(f"{other} ({there.text}) does not have the size of {first} ({here.text})")


def _open(path: Path, onto: Path | None, *, nearest: bool) -> Volume:
    return open_volume(path) if onto is None else align_volume(path, onto, nearest=nearest)


def read_values(path: Path, onto: Path | None = None) -> NDArray[np.float32]:
    """Values as stored, (C, *grid).

    Args:
        path: The file.
        onto: A volume on whose grid to read them.

    Raises:
        DataError: It cannot be read, or holds values that are not finite; the message names it.
    """
    if is_volume(path):
        volume = _open(path, onto, nearest=False)
        values = volume.scale(volume.stored)
        values = values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)
    else:
        values = np.moveaxis(read_pixels(path), -1, 0)
    values = np.ascontiguousarray(values, dtype=np.float32)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise DataError(
            f"{path} holds {bad} values that are not finite; replace them, for example by the "
            "background value"
        )
    return values


def read_labels(path: Path, onto: Path | None = None) -> NDArray[np.int64]:
    """Labels as stored, (*grid).

    Args:
        path: The file.
        onto: A volume on whose grid to read them.

    Raises:
        DataError: It cannot be read, or holds fractions or colors; the message names it.
    """
    if not is_volume(path):
        return gray_values(read_mask(path), str(path)).astype(np.int64)
    volume = _open(path, onto, nearest=True)
    if volume.channels > 1:
        raise DataError(f"labels {path} have the shape {volume.stored.shape}, expected 3 axes")
    return whole_numbers(volume.scale(volume.stored), str(path)).astype(np.int64)


def limits_of(
    values: NDArray, percentiles: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The values of (C, *grid) that become 0 and 1, (C, 1, ...) each."""
    low, high = percentiles
    if (low, high) == (0, 100):
        axes = tuple(range(1, values.ndim))
        return values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    ends = percentile_limits(np.moveaxis(values, 0, -1), (low, high))
    shape = (-1, *[1] * (values.ndim - 1))
    first, last = (np.asarray(end, dtype=np.float32).reshape(shape) for end in ends)
    return first, last


def to_unit(values: NDArray, percentiles: Sequence[float]) -> NDArray[np.float32]:
    """Scale (C, *grid) to [0, 1], each channel separately; a constant one becomes 0."""
    low, high = limits_of(values, percentiles)
    span = np.where(high > low, high - low, np.float32(1))
    return ((values - low) / span).clip(0, 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Case:
    """A volume or an image, and its labels.

    Attributes:
        path: The file.
        root: Folder that its name is relative to.
        label_path: The file of its labels, if there are any.
        group: As in `Item`.
    """

    path: Path
    root: Path = Path()
    label_path: Path | None = None
    group: str = ""

    @property
    def name(self) -> str:
        """Path relative to the root."""
        return relative_name(self.path, self.root)

    @property
    def grid(self) -> Grid:
        """Its grid."""
        return grid_of(self.path)

    def images(self) -> Sequence[StoredImage]:
        """The image, or the slices of the volume."""
        if is_volume(self.path):
            return cut_volume([self.path], None, "axial", self.root)
        return (FileImage(self.path, self.root),)

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the labels."""
        return "" if self.label_path is None else relative_name(self.label_path, self.root)


@dataclass(frozen=True, eq=False)
class Pair:
    """A case to be registered to another one.

    Attributes:
        moving: The case that is warped.
        fixed: The target case.
        group: As in `Item`.
    """

    moving: Case
    fixed: Case
    group: str = ""

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.moving.name} -> {self.fixed.name}"

    @property
    def cases(self) -> tuple[Case, Case]:
        """The moving and the fixed one."""
        return self.moving, self.fixed

    def images(self) -> Sequence[StoredImage]:
        """The images of both."""
        return (*self.moving.images(), *self.fixed.images())

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the fixed one's labels."""
        return self.fixed.target_text(class_names)
