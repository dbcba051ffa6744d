"""Grids of files: volumes in patient coordinates, GeoTIFF files in map coordinates.

Files of one case (an image, its other channels, its mask) must share one grid: no pixel may be
farther from its counterpart in another file than `TOLERANCE` times the pixel spacing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.listing import stamp

# relative to the smallest spacing; headers have rounded numbers
TOLERANCE = 0.1
TIFF_SUFFIXES = (".tif", ".tiff")
# tags and keys of GeoTIFF 1.1
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEY_DIRECTORY = 33550, 33922, 34264, 34735
RASTER_TYPE, GEODETIC_CRS, PROJECTED_CRS = 1025, 2048, 3072
PIXEL_IS_POINT, USER_DEFINED = 2, 32767
ORIENTATION = 274


@dataclass(frozen=True)
class Grid:
    """A grid of pixels or voxels.

    Attributes:
        shape: Pixels along each of D axes.
        affine: (D + 1, D + 1), from indices to coordinates.
        frame: Coordinate system, if known.
        text: Description of the grid.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    frame: str
    text: str

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbors along each axis."""
        return tuple(np.linalg.norm(self.affine[:-1, :-1], axis=0).tolist())

    def agrees(self, other: "Grid") -> bool:
        """Whether both have the same pixels at the same positions."""
        if self.shape != other.shape or not self.same_frame(other):
            return False
        corners = np.asarray([[*c, 1] for c in product(*((0, n - 1) for n in self.shape))])
        apart = np.linalg.norm(corners @ (self.affine - other.affine).T, axis=1).max()
        return bool(apart <= TOLERANCE * min(self.spacing))

    def same_frame(self, other: "Grid") -> bool:
        """Whether coordinates are comparable; an unknown system is assumed to be the same."""
        return not (self.frame and other.frame) or self.frame == other.frame

    def overlaps(self, other: "Grid") -> bool:
        """Whether a pixel of this grid is inside the other one."""
        steps = [np.linspace(0, n - 1, min(n, 33)) for n in self.shape]
        indices = np.stack([axis.ravel() for axis in np.meshgrid(*steps, indexing="ij")])
        there = (np.linalg.inv(other.affine) @ self.affine)[:-1]
        found = there[:, :-1] @ indices + there[:, -1:]
        last = np.asarray(other.shape)[:, None] - 0.5
        return bool(((found >= -0.5) & (found <= last)).all(0).any())


def check_grids(
    first: Grid, other: Grid, first_path: Path, path: Path, *, align: bool = False
) -> None:
    """Fail unless two files of a case share one grid, or can be resampled.

    Args:
        first: Grid of the image.
        other: Grid of another file of the case.
        first_path: The image.
        path: The other file.
        align: Accept other grids if they overlap.

    Raises:
        DataError: The message names both files and both grids.
    """
    if first.agrees(other):
        return
    here, there = f"{first_path} ({first.text})", f"{path} ({other.text})"
    if not first.same_frame(other):
        raise DataError(f"{there} has another CRS than {here}")
    if not align:
        raise DataError(
            f"{there} is not on the grid of {here}; correct the wrong header, or "
            "resample the former onto the latter: --data.align true"
        )
    if not first.overlaps(other):
        raise DataError(f"{there} does not overlap {here}")


def resample(values: NDArray, grid: Grid, onto: Grid, *, nearest: bool, outside: float) -> NDArray:
    """Resample values from one grid onto another.

    Args:
        values: (*grid.shape) or (*grid.shape, C).
        grid: Their grid.
        onto: The target grid.
        nearest: Take the nearest value, for masks; otherwise interpolate linearly, to float32.
        outside: Value outside the grid.

    Returns:
        (*onto.shape) or (*onto.shape, C).
    """
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(grid.affine) @ onto.affine
    place: dict[str, Any] = {
        "matrix": matrix[:-1, :-1],
        "offset": matrix[:-1, -1],
        "output_shape": onto.shape,
    }
    if nearest:
        values = values.astype(values.dtype.newbyteorder("="))
        place |= {"order": 0, "mode": "grid-constant", "cval": outside}
    else:
        values = values.astype(np.float32)
        place |= {"order": 1, "mode": "nearest"}
    if values.ndim == len(grid.shape):
        found = affine_transform(values, **place)
    else:
        channels = [affine_transform(values[..., i], **place) for i in range(values.shape[-1])]
        found = np.stack(channels, axis=-1)
    if not nearest:  # extend edge values half a pixel outward, not beyond
        place |= {"order": 0, "mode": "grid-constant", "cval": 0}
        inside = affine_transform(np.ones(grid.shape, dtype=np.uint8), **place)
        found[inside == 0] = outside
    return found


def describe_volume(shape: Sequence[int], affine: NDArray) -> str:
    """Description of a volume's grid.

    Args:
        shape: Voxels along the three axes.
        affine: (4, 4), in millimeters toward the right, front and top of the patient.
    """
    from nibabel import aff2axcodes

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    text = (
        f"{by(shape)} voxels of {by(spacing)} mm, axes {''.join(map(str, aff2axcodes(affine)))}, "
        f"the first at ({', '.join(number(v) for v in affine[:3, 3])})"
    )
    if is_straight(affine):
        return text
    return f"{text}, turned by {np.round(affine[:3, :3] / spacing, 3).tolist()}"


def is_straight(affine: NDArray) -> bool:
    """Whether each axis is parallel to a coordinate axis."""
    part = np.abs(affine[:3, :3])
    return bool((part.max(0) >= 0.999 * np.linalg.norm(part, axis=0)).all())


def raster_grid(path: Path) -> Grid | None:
    """Grid of a GeoTIFF in map coordinates; None if the file is not georeferenced.

    Raises:
        DataError: The file cannot be read; the message names it.
    """
    is_tiff = path.suffix.lower() in TIFF_SUFFIXES
    return _read_raster_grid(path, stamp(path)) if is_tiff else None


@lru_cache(maxsize=4096)
def _read_raster_grid(path: Path, _stamp: tuple[int, int]) -> Grid | None:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            tags = {
                code: tuple(page.tags[code].value)
                for code in (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEY_DIRECTORY)
                if code in page.tags
            }
            turned = ORIENTATION in page.tags and page.tags[ORIENTATION].value != 1
            shape = page.imagelength, page.imagewidth
    except (OSError, ValueError, IndexError, TypeError, tifffile.TiffFileError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from None
    keys = read_keys(tags.get(KEY_DIRECTORY, ()))
    affine = map_affine(tags, point=keys.get(RASTER_TYPE) == PIXEL_IS_POINT)
    if turned or affine is None or not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        return None
    code = keys.get(PROJECTED_CRS, keys.get(GEODETIC_CRS, USER_DEFINED))
    frame = "" if code in (0, USER_DEFINED) else f"EPSG:{code}"
    steps = np.linalg.norm(affine[:2, :2], axis=0)
    text = (
        f"{by(shape)} pixels of {by(steps)} map units, the upper left corner at "
        f"({', '.join(number(v) for v in (affine @ (-0.5, -0.5, 1))[1::-1])})"
    )
    return Grid(shape, affine, frame, f"{text}, {frame or 'on a map that has no number'}")


def read_keys(directory: Sequence[int]) -> dict[int, int]:
    """The numeric keys of a GeoTIFF."""
    rows = [tuple(directory[i : i + 4]) for i in range(4, len(directory) - 3, 4)]
    return {int(key): int(value) for key, place, _, value in rows if place == 0}


def map_affine(tags: dict[int, tuple[float, ...]], *, point: bool) -> NDArray[np.float64] | None:
    """(3, 3) from the (row, column) of a pixel's center to (y, x) on the map.

    Args:
        tags: Values of a GeoTIFF's tags.
        point: Coordinates refer to pixel centers rather than upper left corners.
    """
    if len(matrix := tags.get(TRANSFORMATION, ())) == 16:
        full = np.asarray(matrix, dtype=np.float64).reshape(4, 4)
        affine = full[[1, 0, 3]][:, [1, 0, 3]]
    elif len(scale := tags.get(PIXEL_SCALE, ())) >= 2 and len(tags.get(TIE_POINTS, ())) == 6:
        column, row, _, x, y, _ = tags[TIE_POINTS]
        affine = np.asarray(
            [[-scale[1], 0, y + row * scale[1]], [0, scale[0], x - column * scale[0]], [0, 0, 1]]
        )
    else:
        return None
    to_centre = np.eye(3)
    to_centre[:2, 2] = 0 if point else 0.5
    return affine @ to_centre


def by(numbers: Sequence[float] | NDArray) -> str:
    """`256 x 256 x 3`."""
    return " x ".join(number(value) for value in numbers)


def number(value: float) -> str:
    """A number with at most seven digits, and no minus sign before 0."""
    return f"{value + 0.0:.7g}" if abs(value) > 1e-9 else "0"
