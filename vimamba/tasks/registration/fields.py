"""Displacements and warped volumes as files for other programs.

A field is written in ITK's convention (ANTs, SimpleITK, 3D Slicer): at every voxel of the fixed
volume the vector to its position in the moving one, in millimeters, with components toward the
patient's left, posterior and superior, as a NIfTI file with five axes and the intent "vector".

Sizes: n axes, *grid the axes of the fixed image in the order of our readers.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.paired.cases import is_volume
from vimamba.data.volume_files import open_volume, to_stored_axes
from vimamba.files import write_whole

# NIfTI's affines use right, anterior, superior
TO_LPS = np.diag([-1.0, -1.0, 1.0])


def to_millimeters(flow: NDArray, affine: NDArray) -> NDArray[np.float32]:
    """Convert a displacement from cells to millimeters toward left, posterior, superior.

    Args:
        flow: (3, *grid), component c along axis c.
        affine: (4, 4) of a NIfTI file, for the same axes.

    Returns:
        (3, *grid).
    """
    return np.tensordot(TO_LPS @ affine[:3, :3], flow, axes=1).astype(np.float32)


def write_field(flow: NDArray, fixed: Path, path: Path) -> None:
    """Write a displacement field.

    For an image it is in pixels to the right and down, on a grid with origin 0 and spacing 1.

    Args:
        flow: (n, *grid), cells.
        fixed: The fixed file, on whose grid the field is.
        path: .nii.gz to write.
    """
    if is_volume(fixed):
        volume = open_volume(fixed)
        parts = [to_stored_axes(volume, part) for part in to_millimeters(flow, volume.grid.affine)]
        _save(np.stack(parts, axis=-1)[:, :, :, None], volume.affine, path, intent="vector")
    else:
        vectors = np.stack([flow[1].T, flow[0].T], axis=-1).astype(np.float32)
        _save(vectors[:, :, None, None], np.diag([-1.0, -1.0, 1.0, 1.0]), path, intent="vector")


def write_volume(values: NDArray, fixed: Path, path: Path) -> None:
    """Write values (C, *grid) as a volume with the geometry of the fixed one."""
    volume = open_volume(fixed)
    parts = [to_stored_axes(volume, part) for part in values]
    _save(parts[0] if len(parts) == 1 else np.stack(parts, axis=-1), volume.affine, path)


def _save(stored: NDArray, affine: NDArray, path: Path, intent: str = "none") -> None:
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), affine)
    # some programs read the qform, some the sform
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    image.header.set_intent(intent)
    with write_whole(path) as part:
        nibabel.save(image, part)
