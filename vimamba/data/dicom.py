"""DICOM series: the slices of one volume, each in a separate file.

A series is named by any of its files; the others are in the same folder. The order of the slices
is that of their positions in the patient, not of file names or instance numbers. The
third axis is the step from slice to slice, so that of a tilted gantry it leans as the slices do.

Axes of a slice as stored: rows, columns. Positions are in millimeters to the patient's left, back
and head (LPS).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import TOLERANCE
from vimamba.data.listing import list_folder, stamp
from vimamba.data.pixels import reading
from vimamba.data.volume_files import Volume, check_affine, is_dicom, reoriented_volume

# what all slices of a volume have in common
ALIKE = (
    *("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"),
    *("BitsAllocated", "PixelRepresentation"),
)
NEEDED = (*ALIKE, "ImagePositionPatient")
TAGS = (
    *NEEDED,
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("NumberOfFrames", "SamplesPerPixel"),
)
# objects that have pixels and are no pictures of a patient: segmentations, doses
NO_IMAGES = ("SEG", "RTDOSE")
# rounding of headers, millimeters and parts of a direction
ROUNDING = 1e-3


@dataclass(frozen=True)
class Series:
    """Slices of one volume.

    Attributes:
        files: In the natural order of their names.
        label: The number and the description of the series, or its UID where these name several.
    """

    files: tuple[Path, ...]
    label: str


def list_series(folder: Path) -> list[Series]:
    """The series with files directly in a folder, in the order of their first files.

    Raises:
        DataError: A file cannot be read; the text names it.
    """
    return list(_list_series(folder, stamp(folder)))


@lru_cache(maxsize=64)
def _list_series(folder: Path, _stamp: tuple[int, int]) -> tuple[Series, ...]:
    files: dict[str, list[Path]] = {}
    labels: dict[str, str] = {}
    for path in filter(is_dicom, list_folder(folder)[1]):
        try:
            head = read_head(path)
        except DataError:  # reported when it is read
            files[str(path)], labels[str(path)] = [path], path.name
            continue
        if "Rows" not in head or head.get("Modality") in NO_IMAGES:  # or a report, a plan
            continue
        uid = str(head.get("SeriesInstanceUID", ""))
        files.setdefault(uid, []).append(path)
        words = [str(head.get(name) or "") for name in ("SeriesNumber", "SeriesDescription")]
        labels.setdefault(uid, " ".join(filter(None, words)).replace("/", " "))
    times = Counter(labels.values())
    return tuple(
        Series(tuple(found), labels[uid] if labels[uid] and times[labels[uid]] == 1 else uid)
        for uid, found in files.items()
    )


def series_of(path: Path) -> Series:
    """The series that a file belongs to.

    Raises:
        DataError: It is no slice, or a file of its folder cannot be read; the text names it.
    """
    found = next((series for series in list_series(path.parent) if path in series.files), None)
    if found is None:
        raise DataError(f"DICOM file {path} holds no image")
    return found


def read_head(path: Path, tags: Sequence[str] = TAGS) -> Any:
    """A file's data set without its pixels."""
    import pydicom

    with reading(path, "DICOM file"):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))


def read_series(files: Sequence[Path]) -> Volume:
    """The volume that the slices of a series make.

    Raises:
        DataError: A slice is damaged, missing or does not fit the others; the text names it.
    """
    import nibabel

    slices = put_in_order([Slice.of(path) for path in files])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ find_affine(slices)  # NIfTI's are right, front, top
    check_affine(affine, slices[0].path)
    stored, scaling = read_values(slices)
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm")
    return reoriented_volume(stored.transpose(2, 1, 0), affine, header, scaling)


@dataclass(frozen=True)
class Slice:
    """Position of a slice.

    Attributes:
        path: Its file.
        head: Its data set, without pixels.
        position: Of the first pixel, (3,).
        row: Direction in which a row runs, (3,).
        column: Direction in which a column runs, (3,).
    """

    path: Path
    head: Any
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]

    @classmethod
    def of(cls, path: Path) -> "Slice":
        """Read from a file.

        Raises:
            DataError: It says too little, or has several slices or colors.
        """
        head = read_head(path)
        missing = [name for name in NEEDED if head.get(name) in (None, "")]
        if int(head.get("NumberOfFrames") or 1) > 1:
            raise DataError(
                f"DICOM file {path} holds {head.NumberOfFrames} slices; convert it to NIfTI, with "
                "dcm2niix for one"
            )
        if int(head.get("SamplesPerPixel", 1)) != 1:
            raise DataError(f"DICOM file {path} holds colors, expected one value per pixel")
        if missing:
            raise DataError(
                f"DICOM file {path} does not state its position: {', '.join(missing)} missing"
            )
        with reading(path, "DICOM file"):
            directions = np.asarray(head.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
            position = np.asarray(head.ImagePositionPatient, dtype=np.float64).reshape(3)
        return cls(path, head, position, *directions)

    @property
    def depth(self) -> float:
        """Position along the normal of its plane."""
        return float(np.cross(self.row, self.column) @ self.position)


def put_in_order(slices: Iterable[Slice]) -> list[Slice]:
    """Slices sorted by position.

    Raises:
        DataError: They make no volume: one alone, others of another size or direction, two in one
            place, or one missing.
    """
    ordered = sorted(slices, key=lambda one: one.depth)
    first = ordered[0]
    if len(ordered) == 1:
        raise DataError(f"DICOM file {first.path} is the only slice of its series")
    for other in ordered[1:]:
        for name in ALIKE:
            ours, theirs = (np.atleast_1d(one.head[name].value) for one in (first, other))
            if ours.shape != theirs.shape or np.abs(ours - theirs).max() > ROUNDING:
                raise DataError(
                    f"slices of one series differ in {name}: {first.path} has {ours.tolist()}, "
                    f"{other.path} {theirs.tolist()}"
                )
    gaps = np.diff([one.depth for one in ordered])
    usual = float(np.median(gaps))
    for (one, other), gap in zip(pairwise(ordered), gaps, strict=True):
        if gap <= ROUNDING:
            raise DataError(
                f"DICOM files {one.path} and {other.path} have the same position; put the phases "
                "or echoes of a series into separate folders"
            )
        if abs(gap - usual) > TOLERANCE * usual:
            raise DataError(
                f"DICOM files {one.path} and {other.path} are neighbors {gap:.4g} mm apart, others "
                f"of the series {usual:.4g}; slices are missing, or not evenly spaced"
            )
    even = np.linspace(first.position, ordered[-1].position, len(ordered))
    away = np.linalg.norm([one.position for one in ordered] - even, axis=1)
    if away.max() > TOLERANCE * usual:
        raise DataError(
            f"DICOM file {ordered[int(away.argmax())].path} lies {away.max():.4g} mm off the line "
            "of the other slices of its series"
        )
    return ordered


def find_affine(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """(4, 4), from (column, row, slice) to millimeters to the left, back and head."""
    first, last = slices[0], slices[-1]
    between_rows, between_columns = map(float, first.head.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = first.row * between_columns
    affine[:3, 1] = first.column * between_rows
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return affine


def read_values(slices: Sequence[Slice]) -> tuple[NDArray, tuple[float, float]]:
    """(slices, rows, columns) as stored, with the slope and intercept that all of them have.

    Where each has its own, as in PET, values come scaled, as float32.
    """
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut

    scaled = {_scaling(one) for one in slices}
    shared = scaled.pop() if len(scaled) == 1 else None
    values: NDArray | None = None
    for place, one in enumerate(slices):
        with reading(one.path, "DICOM file"):
            data = pydicom.dcmread(one.path)
            pixels = data.pixel_array
            if shared is None:
                pixels = apply_modality_lut(pixels, data).astype(np.float32)
        if values is None:
            values = np.empty((len(slices), *pixels.shape), dtype=pixels.dtype)
        values[place] = pixels
    assert values is not None
    return values, shared or (1.0, 0.0)


def _scaling(one: Slice) -> tuple[float, float] | None:
    """Slope and intercept of a slice; None if it has a table instead."""
    head = read_head(one.path, ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"))
    if "ModalityLUTSequence" in head:
        return None
    slope, intercept = head.get("RescaleSlope"), head.get("RescaleIntercept")
    return float(1 if slope is None else slope), float(intercept or 0)
