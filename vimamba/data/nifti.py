"""NIfTI volumes, cut into slices as they are asked for.

Layouts: `{images,masks}/case.nii.gz` with or without train, val and test as in `mask_folder`, and
those of nnU-Net and the Medical Segmentation Decathlon: `imagesTr/case[_0000].nii.gz` with
`labelsTr/case.nii.gz` (imagesTs and labelsTs, if both are there, are the test split).

An axial slice shows the patient from below with the front up: rows run from front to back, columns
from the patient's right to the left, whatever the order in which the file stores its axes. Files
that are not compressed are read lazily; compressed ones as a whole, the last of them being kept in
memory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.image_folder import subfolders
from vimamba.data.mask_folder import MaskFolder
from vimamba.data.masked import MaskedCatalogue, MaskedSamples, relative_name
from vimamba.data.pairs import match_names
from vimamba.data.pixels import percentile_limits
from vimamba.data.samples import natural_order
from vimamba.data.segmentation import as_samples

ENDINGS = (".nii.gz", ".nii")
Axis = Literal["axial", "coronal", "sagittal"]
# for each axis, the array's axes from slice to column, of left, posterior, superior
ORDER = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
# how many opened volumes each process keeps: an image of four channels and its mask
KEPT = 5


def stem(path: Path) -> str:
    """Name without .nii or .nii.gz."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def list_volumes(folder: Path) -> list[Path]:
    """NIfTI files of a folder in natural order; hidden ones are left out."""
    found = (
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")
    )
    return sorted(found, key=lambda path: natural_order(path.name))


@dataclass(frozen=True)
class Volume:
    """An open file in a fixed orientation.

    Attributes:
        stored: Unscaled values with the axes (left, posterior, superior[, channels]); a view of
            the file where it is not compressed.
        slope: Values are stored * slope + intercept.
        intercept: See slope.
        spacing: Millimetres along the three axes.
        transform: nibabel's orientation transform from the file's axes.
        affine: Of the file.
        header: Of the file.
    """

    stored: NDArray
    slope: float
    intercept: float
    spacing: tuple[float, float, float]
    transform: NDArray
    affine: NDArray
    header: Any


@lru_cache(maxsize=KEPT)
def open_volume(path: Path) -> Volume:
    """Open a file.

    Raises:
        DataError: It is missing, damaged or has neither 3 nor 4 axes; the text names it.
    """
    import nibabel
    from nibabel import orientations
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nibabel.load(path)
        stored = image.dataobj.get_unscaled()
    except FileNotFoundError:
        raise DataError(f"volume {path} does not exist") from None
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError(f"volume {path} cannot be read: {error}") from None
    if stored.ndim not in (3, 4):
        raise DataError(f"volume {path} has the shape {stored.shape}, expected 3 axes")
    wanted = orientations.axcodes2ornt(("L", "P", "S"))
    transform = orientations.ornt_transform(orientations.io_orientation(image.affine), wanted)
    zooms = image.header.get_zooms()
    # row i of the transform says which axis the file's axis i becomes
    spacing = [0.0, 0.0, 0.0]
    for axis, target in enumerate(transform[:, 0].astype(int)):
        spacing[target] = float(zooms[axis])
    return Volume(
        orientations.apply_orientation(stored, transform),
        float(image.dataobj.slope),
        float(image.dataobj.inter),
        (spacing[0], spacing[1], spacing[2]),
        transform,
        image.affine,
        image.header,
    )


def to_stored_axes(volume: Volume, values: NDArray) -> NDArray:
    """An array with the axes (left, posterior, superior) in the order of the file."""
    from nibabel import orientations

    shape = volume.stored.shape[:3]
    back = orientations.ornt_transform(
        orientations.axcodes2ornt(("L", "P", "S")),
        orientations.io_orientation(volume.affine),
    )
    assert values.shape == shape, (values.shape, shape)
    return orientations.apply_orientation(values, back)


def save_labels(slices: NDArray, like: Path, axis: Axis, path: Path) -> None:
    """Write classes as a volume that lies where another one does.

    Args:
        slices: (slices, rows, columns) as `cut_volume` gives them.
        like: Volume whose affine and order of axes to take.
        axis: Which way it was cut.
        path: .nii or .nii.gz to write; a half-written file never appears.
    """
    import nibabel

    volume = open_volume(like)
    stored = to_stored_axes(volume, slices.transpose(np.argsort(ORDER[axis])))
    header = volume.header.copy()
    header.set_data_dtype(stored.dtype)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), volume.affine, header)
    part = path.with_name(f".part.{path.name}")
    nibabel.save(image, part)
    os.replace(part, path)


def volume_mask(path: Path, axis: Axis) -> NDArray:
    """All slices of a mask, (slices, rows, columns) integers."""
    return np.stack([item.mask() for item in cut_volume([path], path, axis, path.parent)])


@dataclass(frozen=True)
class VolumeSlice:
    """A slice of a volume and of its mask.

    Attributes:
        paths: One file per channel, or one with channels on a fourth axis.
        mask_path: The mask; None where there is none yet.
        axis: Which way to cut.
        place: Which slice.
        root: Names are given relative to it.
    """

    paths: tuple[Path, ...]
    mask_path: Path | None
    axis: Axis
    place: int
    root: Path

    @property
    def name(self) -> str:
        """Path of the volume and the slice's place in it."""
        return f"{relative_name(self.paths[0], self.root)}[{self.place}]"

    @property
    def mask_name(self) -> str:
        """Path of the mask and the slice's place in it."""
        return f"{relative_name(self.mask_path, self.root)}[{self.place}]" if self.mask_path else ""

    @property
    def case(self) -> str:
        """The volume."""
        return relative_name(self.paths[0], self.root)

    @property
    def group(self) -> str:
        """The volume."""
        return self.case

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between (slices, rows, columns)."""
        found = open_volume(self.paths[0]).spacing
        return tuple(found[axis] for axis in ORDER[self.axis])

    def _cut(self, path: Path) -> NDArray:
        """(H, W) or (H, W, C) of one file, scaled."""
        volume = open_volume(path)
        # (slices, rows, columns[, channels])
        turned = volume.stored.transpose(*ORDER[self.axis], *range(3, volume.stored.ndim))
        if self.place >= len(turned):
            raise DataError(f"volume {path} has {len(turned)} slices, {self.name} is not there")
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
        values = self._cut(self.mask_path)
        return np.rint(values).astype(np.int64) if values.dtype.kind == "f" else values

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
        lows.append(low * volume.slope + volume.intercept)
        highs.append(high * volume.slope + volume.intercept)
    return np.concatenate(lows), np.concatenate(highs)


def cut_volume(
    paths: Sequence[Path], mask_path: Path | None, axis: Axis, root: Path
) -> list[VolumeSlice]:
    """All slices of a volume.

    Raises:
        DataError: The files of one case do not have the same shape.
    """
    files = [*paths, *([mask_path] if mask_path else [])]
    shapes = [open_volume(path).stored.shape[:3] for path in files]
    for path, shape in zip(files, shapes, strict=True):
        if shape != shapes[0]:
            raise DataError(f"{path} has the shape {shape}, {paths[0]} has {shapes[0]}")
    count = shapes[0][ORDER[axis][0]]
    return [VolumeSlice(tuple(paths), mask_path, axis, place, root) for place in range(count)]


class NiftiSlices(MaskFolder):
    """NIfTI volumes slice by slice; see the module for the layouts.

    Args:
        root: The folder.
        axis: Which way to cut: axial, coronal or sagittal.
        labelled_only: Train only on slices that hold a value other than 0.
        in_chans: Channels: one per file of a case, or those on a fourth axis.
        **kwargs: Arguments of `MaskFolder`.
    """

    def __init__(
        self,
        root: str,
        *,
        axis: Axis = "axial",
        labelled_only: bool = False,
        in_chans: int = 1,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, in_chans=in_chans, **kwargs)
        self.axis: Axis = axis
        self.labelled_only = labelled_only

    def read(self) -> MaskedCatalogue:
        """Find the volumes and cut them."""
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        named = {path.name: path for path in subfolders(self.root)}
        if "imagesTr" not in named:
            found = super().read()
        else:
            train = as_samples(self.pair(named["imagesTr"], self.root / "labelsTr"))
            if "imagesTs" in named and "labelsTs" in named:
                test = as_samples(self.pair(named["imagesTs"], named["labelsTs"]))
                found = self.with_val({"train": train, "test": test})
            else:
                found = MaskedCatalogue(self.divide_cases(train), drawn=True)
        if self.labelled_only and "train" in found.splits:
            found.splits["train"] = labelled(found.splits["train"])
        return found

    def pair(self, images: Path, masks: Path) -> list[Any]:
        """Slices of all volumes of a folder with those of their masks."""
        if not masks.is_dir():
            raise DataError(f"there is no folder {masks}")
        mask_files = {
            stem(path).removesuffix(self.mask_suffix): path for path in list_volumes(masks)
        }
        image_files: dict[str, list[Path]] = {}
        for path in list_volumes(images):
            name, _, channel = stem(path).rpartition("_")
            is_channel = len(channel) == 4 and channel.isdecimal() and stem(path) not in mask_files
            image_files.setdefault(name if is_channel else stem(path), []).append(path)
        if not image_files:
            raise DataError(f"folder {images} holds no volume")
        match_names(image_files, mask_files, images, masks)
        return [
            item
            for name, paths in image_files.items()
            for item in cut_volume(paths, mask_files[name], self.axis, self.root)
        ]


def labelled(samples: MaskedSamples) -> MaskedSamples:
    """Slices whose mask holds more than its least value."""
    return MaskedSamples(tuple(item for item in samples.items if item.mask().any()))
