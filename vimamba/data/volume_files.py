"""Volumes as arrays of known axes, and arrays as NIfTI files in the geometry of a volume.

The axes are (left, posterior, superior), whatever the order of the file's axes. The files of a case
must share one grid (`geometry`). If the two affines of a file differ, its sform is used, as in
nibabel. Uncompressed files are read lazily; compressed ones and DICOM series (`dicom`) as a whole,
and the most recent ones are kept in memory.
"""

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import Grid, describe_volume, resample
from vimamba.data.listing import IMAGE_SUFFIXES, list_folder, stamp
from vimamba.data.pixels import percentile_limits
from vimamba.data.remarks import Remarks
from vimamba.files import write_whole

ENDINGS = (".nii.gz", ".nii")
Axis = Literal["axial", "coronal", "sagittal"]
# for each slicing axis, the array's axes from slice to column, among left, posterior, superior
ORDER = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
# open volumes kept by each process: an image of four channels and its mask
KEPT = 5
# ratio of the shortest to the longest axis below which an affine is called degenerate
FLAT = 1e-5


def stem(path: Path) -> str:
    """Name without .nii or .nii.gz, or without another suffix."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def list_volumes(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """NIfTI files directly in a folder, in natural order; hidden ones are skipped.

    Args:
        folder: Folder to search.
        remarks: Receives what is skipped, including folders and other files.
    """
    remarks = remarks or Remarks()
    folders, files = list_folder(folder, remarks)
    volumes = [path for path in files if path.name.lower().endswith(ENDINGS)]
    for path in (*folders, *(path for path in files if path not in set(volumes))):
        kind = "folder" if path.is_dir() else path.suffix.lower() or "file"
        remarks.leave_out(kind, path.relative_to(folder.parent))
    return volumes


@dataclass(frozen=True)
class Volume:
    """An open file in a fixed orientation.

    Attributes:
        stored: Unscaled values with the axes (left, posterior, superior[, channels]); a view of the
            file if it is not compressed.
        slope: Values are stored * slope + intercept.
        intercept: See slope.
        grid: Grid of the voxels, by the axes of `stored`.
        affine: Affine of the file.
        header: NIfTI header of the file.
    """

    stored: NDArray
    slope: float
    intercept: float
    grid: Grid
    affine: NDArray
    header: Any

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimeters along the three axes."""
        return self.grid.spacing

    @property
    def channels(self) -> int:
        """Number of values per voxel."""
        return self.stored.shape[3] if self.stored.ndim == 4 else 1

    def scale(self, stored: NDArray) -> NDArray:
        """Stored values times the slope plus the intercept; float32 unless these do nothing."""
        if self.slope == 1 and self.intercept == 0:
            return np.asarray(stored)
        return np.asarray(stored) * np.float32(self.slope) + np.float32(self.intercept)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes, whatever its name."""
    if path.name.lower().endswith((*ENDINGS, *IMAGE_SUFFIXES)):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open_volume(path: Path) -> Volume:
    """Open a NIfTI file, or the DICOM series of a file; the most recent ones are cached.

    Raises:
        DataError: It is missing, damaged, has neither 3 nor 4 axes, or an unusable affine; the
            message names it.
    """
    files = (path,)
    if is_dicom(path):
        from vimamba.data.dicom import series_of

        files = series_of(path).files
    return _open_volume(files, tuple(map(stamp, files)))


def forget_volumes() -> None:
    """Clear the cache of open volumes."""
    _open_volume.cache_clear()
    _align_volume.cache_clear()


@lru_cache(maxsize=KEPT)
def _open_volume(files: tuple[Path, ...], _stamps: tuple[tuple[int, int], ...]) -> Volume:
    if is_dicom(files[0]):
        from vimamba.data.dicom import read_series

        return read_series(files)
    return read_nifti(files[0])


def read_nifti(path: Path) -> Volume:
    """Open a NIfTI file.

    Raises:
        DataError: As in `open_volume`.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
        stored = image.dataobj.get_unscaled()
    except FileNotFoundError:
        raise DataError(f"volume {path} does not exist") from None
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"volume {path} cannot be read: {error}") from None
    if stored.ndim > 3:  # singleton axes between the three spatial ones and the channels
        stored = stored.reshape(*stored.shape[:3], *(n for n in stored.shape[3:] if n > 1))
    if stored.ndim not in (3, 4) or 0 in stored.shape:
        raise DataError(f"volume {path} has the shape {stored.shape}, expected 3 axes")
    if stored.dtype.kind not in "iuf":
        raise DataError(f"volume {path} holds {stored.dtype} instead of numbers")
    check_affine(image.affine, path)
    check_spacing(image, path)
    scaling = float(image.dataobj.slope), float(image.dataobj.inter)
    known = image.header["qform_code"] or image.header["sform_code"]
    note = "" if known else " (qform and sform are not set)"
    return reoriented_volume(stored, image.affine, image.header, scaling, note)


def reoriented_volume(
    stored: NDArray, affine: NDArray, header: Any, scaling: tuple[float, float], note: str = ""
) -> Volume:
    """A volume with its axes reordered.

    Args:
        stored: Array of the file, the three spatial axes first.
        affine: (4, 4), from the file's indices to millimeters to the right, front and top.
        header: Of a NIfTI file.
        scaling: Slope and intercept of the values.
        note: Appended to the description of the grid.
    """
    from nibabel import orientations

    wanted = orientations.axcodes2ornt(("L", "P", "S"))
    transform = orientations.ornt_transform(orientation(affine), wanted)
    reoriented = orientations.apply_orientation(stored, transform)
    there = affine @ orientations.inv_ornt_aff(transform, stored.shape[:3])
    text = describe_volume(stored.shape[:3], affine) + note
    grid = Grid(reoriented.shape[:3], there, "", text)
    return Volume(reoriented, *scaling, grid, affine, header)


def check_affine(affine: NDArray, path: Path) -> None:
    """Fail on an unusable affine: not finite, or with an axis of length 0."""
    lengths = np.linalg.svd(affine[:3, :3], compute_uv=False) if np.isfinite(affine).all() else None
    if lengths is None or lengths[-1] <= FLAT * lengths[0]:
        rows = [[float(f"{value:.4g}") for value in row] for row in affine[:3]]
        raise DataError(
            f"volume {path} has no usable location: its affine is {rows}; correct its header"
        )


def check_spacing(image: Any, path: Path) -> None:
    """Fail if the affine comes from a spacing of 0, which nibabel replaces by 1."""
    from nibabel.openers import ImageOpener

    if image.header["sform_code"]:
        return
    with ImageOpener(str(path)) as file:
        stored = type(image.header).from_fileobj(file, check=False)
    spacing, shape = stored["pixdim"][1:4], stored["dim"][1:4]
    if any(not abs(step) > 0 for step, size in zip(spacing, shape, strict=True) if size > 1):
        raise DataError(
            f"volume {path} has no usable location: its spacing is {spacing.tolist()}; correct "
            "its header"
        )


def orientation(affine: NDArray) -> NDArray:
    """Orientation as in nibabel, but insensitive to rounding of the affine."""
    from nibabel import orientations

    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    rounded = np.eye(4)
    rounded[:3, :3] = np.round(directions, 4)
    return orientations.io_orientation(rounded)


def affines_differ(volume: Volume) -> bool:
    """Whether a file's qform and sform are both set and differ."""
    header, shape = volume.header, volume.grid.shape
    if not (header["qform_code"] and header["sform_code"]):
        return False
    try:
        forms = [header.get_sform(), header.get_qform()]
    except ValueError:  # a qform that is not a rotation
        return True
    one, other = (Grid(shape, np.asarray(form, dtype=np.float64), "", "") for form in forms)
    return not one.agrees(other)


def align_volume(path: Path, first: Path, *, nearest: bool) -> Volume:
    """Open a file, resampled onto the grid of another one.

    Args:
        path: The file.
        first: File with the target grid.
        nearest: Take the nearest value, and 0 outside the file; otherwise interpolate linearly,
            with the minimum outside.
    """
    return _align_volume(path, first, nearest, stamp(path), stamp(first))


@lru_cache(maxsize=KEPT)
def _align_volume(path: Path, first: Path, nearest: bool, *_stamps: tuple[int, int]) -> Volume:
    volume, onto = open_volume(path), open_volume(first).grid
    if onto.agrees(volume.grid):
        return volume
    stored = np.asarray(volume.stored)
    if nearest:
        outside = round(-volume.intercept / volume.slope)
    else:
        outside = np.nanmin(stored) if volume.slope > 0 else np.nanmax(stored)
    placed = resample(stored, volume.grid, onto, nearest=nearest, outside=float(outside))
    return replace(volume, stored=placed, grid=onto)


def to_stored_axes(volume: Volume, values: NDArray) -> NDArray:
    """Reorder an array's axes (left, posterior, superior) to those of the file."""
    from nibabel import orientations

    shape = volume.stored.shape[:3]
    back = orientations.ornt_transform(
        orientations.axcodes2ornt(("L", "P", "S")), orientation(volume.affine)
    )
    assert values.shape[:3] == shape, (values.shape, shape)
    return orientations.apply_orientation(values, back)


def save_labels(slices: NDArray, like: Path, axis: Axis, path: Path) -> None:
    """Write classes, or several values per voxel, as a volume with the geometry of another one.

    Args:
        slices: (slices, rows, columns[, values]) as from `cut_volume`.
        like: Volume whose affine and order of axes to take.
        axis: Slicing axis.
        path: .nii or .nii.gz to write, completely or not at all.
    """
    import nibabel

    volume = open_volume(like)
    axes = (*np.argsort(ORDER[axis]), *range(3, slices.ndim))
    stored = to_stored_axes(volume, slices.transpose(axes))
    header = volume.header.copy()
    header.set_data_dtype(stored.dtype)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), volume.affine, header)
    with write_whole(path) as part:
        nibabel.save(image, part)


@lru_cache(maxsize=256)
def volume_limits(
    paths: tuple[Path, ...], percentiles: tuple[float, float]
) -> tuple[NDArray, NDArray]:
    """Percentiles of each channel of a volume, (C,) each."""
    lows, highs = [], []
    for path in paths:
        volume = open_volume(path)
        shape = volume.stored.shape
        values = (
            volume.stored.reshape(*shape[:3], -1) if len(shape) == 4 else volume.stored[..., None]
        )
        low, high = percentile_limits(np.asarray(values), percentiles)
        ends = [end * volume.slope + volume.intercept for end in (low, high)]
        lows.append(np.minimum(*ends))  # a negative slope reverses them
        highs.append(np.maximum(*ends))
    return np.concatenate(lows), np.concatenate(highs)
