"""NIfTI volumes, cut into slices on demand.

Layouts: `{images,masks}/case.nii.gz` with or without train, val and test as in `mask_folder`, and
those of nnU-Net and the Medical Segmentation Decathlon: `imagesTr/case[_0000].nii.gz` with
`labelsTr/case.nii.gz` (imagesTs and labelsTs, if both exist, are the test split).

An axial slice shows the patient from below with the front up: rows run from front to back, columns
from the patient's right to the left, whatever the order of the file's axes. The files of a case
must share one grid (`geometry`). If the two affines of a file differ, its sform is used, as in
nibabel. Uncompressed files are read lazily; compressed ones as a whole, and the most recent ones
are kept in memory.
"""

import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.geometry import Grid, check_grids, describe_volume, resample
from vimamba.data.items import Catalogue, OneImage, relative_name
from vimamba.data.listing import check_files, list_folder, stamp, subfolders
from vimamba.data.masked.labels import whole_numbers
from vimamba.data.masked.mask_folder import MaskFolder
from vimamba.data.masked.matching import by_name, match_names
from vimamba.data.pixels import percentile_limits, select_bands
from vimamba.data.remarks import Remarks, some
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
        transform: nibabel's orientation transform from the file's axes.
        affine: Affine of the file.
        header: Header of the file.
    """

    stored: NDArray
    slope: float
    intercept: float
    grid: Grid
    transform: NDArray
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


def open_volume(path: Path) -> Volume:
    """Open a file; the most recent ones are cached.

    Raises:
        DataError: It is missing, damaged, has neither 3 nor 4 axes, or an unusable affine; the
            message names it.
    """
    return _open_volume(path, stamp(path))


@lru_cache(maxsize=KEPT)
def _open_volume(path: Path, _stamp: tuple[int, int]) -> Volume:
    import nibabel
    from nibabel import orientations
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
    wanted = orientations.axcodes2ornt(("L", "P", "S"))
    transform = orientations.ornt_transform(orientation(image.affine), wanted)
    turned = orientations.apply_orientation(stored, transform)
    affine = image.affine @ orientations.inv_ornt_aff(transform, stored.shape[:3])
    text = describe_volume(stored.shape[:3], image.affine)
    if not (image.header["qform_code"] or image.header["sform_code"]):
        text += " (qform and sform are not set)"
    return Volume(
        turned,
        float(image.dataobj.slope),
        float(image.dataobj.inter),
        Grid(turned.shape[:3], affine, "", text),
        transform,
        image.affine,
        image.header,
    )


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
        turned = volume.stored.transpose(*ORDER[self.axis], *range(3, volume.stored.ndim))
        if self.place >= len(turned):
            raise DataError(f"volume {path} has {len(turned)} slices; {self.name} does not exist")
        values = np.asarray(turned[self.place])
        if volume.slope == 1 and volume.intercept == 0:
            return values
        return values * np.float32(volume.slope) + np.float32(volume.intercept)

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
