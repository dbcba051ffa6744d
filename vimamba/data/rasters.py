"""Scenes: georeferenced rasters of any size, read window by window through GDAL.

Invalid pixels (nodata, NaN, masked, transparent) are NaN, as everywhere else.
Sizes: H x W pixels, C bands.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from tqdm import tqdm

from vimamba.data.errors import DataError
from vimamba.data.formats import as_numbers, as_type
from vimamba.data.masked.labels import LabelTable, mask_values
from vimamba.labels import IGNORE

# size of GDAL's own cache: every block is decoded once and then kept here, in strips
CACHE_BYTES = 64 << 20
# approximate lines of a strip if the file has lower blocks
STRIP = 256
# largest distance between the corners of two equal grids, in pixels
TOLERANCE = 0.1
# number of windows of a sample, and their sides in pixels
SAMPLES, SAMPLE_SIDE = 36, 64

Role = Literal["image", "labels"]


@contextmanager
def gdal_errors(path: Path) -> Iterator[None]:
    """Turn GDAL's exceptions into an error that names the file; a missing georeference is fine."""
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except RasterioError as error:
        # after "Read failed. See previous exception", the cause has the actual message
        text = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"raster {path} cannot be read: {text}") from error


class Raster:
    """An open raster.

    Args:
        path: Any file that GDAL reads.
        bands: Indices of the bands to read, from 0, in order; by default all, without alpha.
        wanted: Number of bands to look for; alpha counts as a band if it makes up this number, as
            in four-band files whose near infrared is labeled alpha.
        onto: The raster on whose grid to read: a first date, or the scene of these labels.
        align: Warp a raster on another grid onto it, images with bilinear and labels with nearest
            resampling; otherwise it is an error.
        role: Kind of the values.

    Attributes:
        size: H and W.
        count: Number of bands returned by `read`.
        crs: Coordinate reference system; None if unknown.
        transform: From (column, row) to coordinates.

    Raises:
        DataError: It cannot be read, a band does not exist, or it is not on the grid of `onto`; the
            message names it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bands: Sequence[int] | None = None,
        wanted: int | None = None,
        onto: "Raster | None" = None,
        align: bool = False,
        role: Role = "image",
    ) -> None:
        self.path = Path(path)
        self._files: list[Any] = []
        with gdal_errors(self.path):
            self._file: Any = self._keep(rasterio.open(self.path))
            if np.dtype(self._file.dtypes[0]).kind not in "biuf":
                raise DataError(f"raster {path} holds {self._file.dtypes[0]}; expected numbers")
            alphas = [c == ColorInterp.alpha for c in self._file.colorinterp]
            if onto is not None and not self._lies_on(onto):
                self._check_same_map(onto, align=align)
                self._file = self._keep(self._warped(onto, role))
        count = len(alphas)
        plain = [i for i in range(count) if not alphas[i]] if count != wanted else range(count)
        chosen = list(plain if bands is None else bands)
        if not chosen or max(chosen) >= count:
            raise DataError(f"raster {path} has {count} bands; bands={chosen} do not all exist")
        self._indexes = [band + 1 for band in chosen]
        self._opacity = self._find_opacity(chosen)
        self._nodata = [self._file.nodatavals[band] for band in chosen]
        value = self._files[0].nodata
        self._file_nodata = None if value is None or not np.isfinite(value) else value
        self._palette = self._find_palette() if role == "image" else None
        self.count = 3 if self._palette is not None else len(chosen)
        self.size: tuple[int, int] = self._file.shape
        self.crs, self.transform = self._file.crs, self._file.transform
        self.dtype = np.dtype(self._file.dtypes[chosen[0]])

    def _keep(self, file: Any) -> Any:
        self._files.append(file)
        return file

    def _lies_on(self, onto: "Raster") -> bool:
        """Whether the grids are equal; an unknown CRS is assumed to be the same.

        Raises:
            DataError: It is not georeferenced and differs in size.
        """
        file = self._file
        if file.crs and onto.crs and file.crs != onto.crs:
            return False
        placed = file.crs is not None or not file.transform.is_identity
        if not placed:
            if file.shape != onto.size:
                raise DataError(
                    f"raster {self.path} has {file.shape} pixels and no georeference, "
                    f"{onto.path} has {onto.size}"
                )
            return True
        height, width = onto.size
        corners = np.asarray([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)])
        differ = np.subtract(file.transform, onto.transform).reshape(3, 3)
        apart = np.linalg.norm(corners @ differ.T, axis=1)
        side = abs(onto.transform.determinant) ** 0.5
        return file.shape == onto.size and bool(apart.max() <= TOLERANCE * side)

    def _check_same_map(self, onto: "Raster", *, align: bool) -> None:
        """Fail unless a raster on another grid can and should be warped."""
        here, there = (
            f"{name} ({file.crs or 'no CRS'}, {tuple(round(v, 6) for v in file.transform[:6])})"
            for name, file in ((self.path, self._file), (onto.path, onto))
        )
        if not align:
            raise DataError(
                f"raster {here} is not on the grid of {there}; have it warped with "
                "align=True, or warp it yourself"
            )
        if (self._file.crs is None) != (onto.crs is None):
            raise DataError(f"raster {here} cannot be warped onto {there}: one has no CRS")

    def _warped(self, onto: "Raster", role: Role) -> Any:
        """A view of the file on another grid, nodata outside its own."""
        file = self._file
        options: dict[str, Any] = {}
        if role == "image" and file.nodata is None and np.dtype(file.dtypes[0]).kind == "f":
            options = {"src_nodata": np.nan, "nodata": np.nan}
        elif role == "labels" or file.nodata is None:
            # a label's nodata may be a class: pixels outside the file must not become one
            options = {"add_alpha": ColorInterp.alpha not in file.colorinterp}
            options["src_nodata"] = None
        resampling = Resampling.nearest if role == "labels" else Resampling.bilinear
        crs = onto.crs or file.crs
        return WarpedVRT(
            file,
            src_crs=file.crs or crs,
            crs=crs,
            transform=onto.transform,
            height=onto.size[0],
            width=onto.size[1],
            resampling=resampling,
            **options,
        )

    def _find_opacity(self, chosen: Sequence[int]) -> int | None:
        """Index of the alpha band, from 1; 0 for a separate mask."""
        kinds = list(self._file.colorinterp)
        alpha = kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds else None
        if alpha is not None:
            return None if alpha in chosen else alpha + 1
        flags = self._file.mask_flag_enums[chosen[0]]
        return 0 if MaskFlags.per_dataset in flags else None

    def _find_palette(self) -> NDArray[np.uint8] | None:
        """Color table, (256, 3), if values are indices into it."""
        if len(self._indexes) > 1 or self._file.colorinterp[0] != ColorInterp.palette:
            return None
        table = np.zeros((256, 3), dtype=np.uint8)
        for value, color in self._file.colormap(1).items():
            table[value] = color[:3]
        return table

    @property
    def has_gaps(self) -> bool:
        """Whether there can be invalid pixels."""
        named = any(value is not None for value in self._nodata)
        return named or self._opacity is not None or self.dtype.kind == "f"

    @property
    def strip_height(self) -> int:
        """Lines to read at a time, in whole blocks."""
        block = max(height for height, _ in self._file.block_shapes)
        return block * max(1, STRIP // block)

    @property
    def line_bytes(self) -> int:
        """Bytes of one stored line."""
        return self.dtype.itemsize * len(self._indexes) + (self._opacity is not None)

    def load(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_] | None]:
        """Stored values, (C, h, w), and the opaque pixels, (h, w), if stored."""
        window = Window.from_slices(rows, columns)
        with gdal_errors(self.path):
            values = self._file.read(self._indexes, window=window)
            if self._opacity is None:
                return values, None
            if self._opacity:
                return values, self._file.read(self._opacity, window=window) > 0
            return values, self._file.read_masks(1, window=window) > 0

    def numbers(self, values: NDArray, opaque: NDArray[np.bool_] | None) -> NDArray:
        """(H, W, C) uint8, uint16, float32, or float16 for 8 bits with gaps, from `load`.

        Invalid pixels are NaN.
        """
        bands = [as_numbers(*pair) for pair in zip(values, self._nodata, strict=True)]
        dtype = np.result_type(*bands)
        found = np.stack([band.astype(dtype, copy=False) for band in bands], axis=-1)
        if self._palette is not None:
            found = self._palette[values[0]]
        if opaque is not None and not opaque.all():
            if found.dtype.kind != "f":
                found = found.astype(np.float16 if found.dtype == np.uint8 else np.float32)
            found[~opaque] = np.nan
        return found

    def known(self, values: NDArray, opaque: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """(H, W): pixels with at least one valid band, from `load`'s result."""
        found = np.zeros(values.shape[1:], dtype=bool)
        for band, nodata in zip(values, self._nodata, strict=True):
            here = np.isfinite(band) if band.dtype.kind == "f" else np.ones(band.shape, dtype=bool)
            value = None if nodata is None else as_type(nodata, band.dtype)
            if value is not None:
                here &= band != value
            found |= here
        return found if opaque is None else found & opaque

    def read(self, rows: slice, columns: slice) -> NDArray:
        """A window, (h, w, C), with NaN for invalid pixels."""
        return self.numbers(*self.load(rows, columns))

    def labels(self, rows: slice, columns: slice, table: LabelTable) -> NDArray[np.uint8]:
        """Classes of a window of labels, (h, w); `IGNORE` for invalid pixels.

        A nodata value that is also a class counts as that class.

        Args:
            rows: Rows of the window.
            columns: Columns of the window.
            table: Meaning of the values.

        Raises:
            DataError: A value is not a class.
        """
        stored, gaps = self.stored_labels(rows, columns, table.is_class, table.values[0])
        found = table.indices(stored, str(self.path))
        found[gaps] = IGNORE
        return found

    def stored_labels(
        self, rows: slice, columns: slice, is_class: Callable[[int], bool], fill: int
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """Values of a window of labels, (h, w) or (h, w, 3), and its invalid pixels, (h, w).

        Args:
            rows: Rows of the window.
            columns: Columns of the window.
            is_class: Whether a nodata value is also a class and thus valid.
            fill: Value of invalid pixels.
        """
        values, opaque = self.load(rows, columns)
        gaps = np.zeros(values.shape[1:], dtype=bool) if opaque is None else ~opaque
        if len(values) == 1:
            if values.dtype.kind == "f":
                gaps |= ~np.isfinite(values[0])
            nodata = self._file_nodata
            if nodata is not None and not is_class(int(nodata)):
                gaps |= values[0] == nodata
            values = np.where(gaps, fill, values)
        return mask_values(np.moveaxis(values, 0, -1), str(self.path)), gaps

    def sample(self, bar: Callable[..., Any] = tqdm) -> NDArray:
        """Windows spread over the scene, concatenated, (h, w, C).

        Args:
            bar: Progress bar.
        """
        sides = [min(length, SAMPLE_SIDE) for length in self.size]
        steps = int(SAMPLES**0.5)
        places = [
            (int(row), int(column))
            for row in np.linspace(0, self.size[0] - sides[0], steps)
            for column in np.linspace(0, self.size[1] - sides[1], steps)
        ]
        name = f"looking at {self.path.name}"
        found = [
            self.read(slice(row, row + sides[0]), slice(column, column + sides[1]))
            for row, column in bar(places, desc=name, unit="window", leave=False, disable=None)
        ]
        return np.concatenate(found, axis=1)

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Strips:
    """The current lines of a raster, each decoded once.

    Args:
        raster: The raster.
        columns: The part of every line to keep.
    """

    def __init__(self, raster: Raster, columns: slice) -> None:
        self.raster, self.columns, self.height = raster, columns, raster.strip_height
        self._held: dict[int, tuple[NDArray, NDArray[np.bool_] | None]] = {}

    @staticmethod
    def most(raster: Raster, lines: int) -> int:
        """Maximum number of strips that `lines` lines can overlap."""
        return min(-(-lines // raster.strip_height) + 1, -(-raster.size[0] // raster.strip_height))

    def hold(self, rows: slice) -> None:
        """Read missing strips of some lines, and drop all others."""
        places = range(rows.start // self.height, (rows.stop - 1) // self.height + 1)
        kept = {place: self._held[place] for place in places if place in self._held}
        self._held = kept  # before reading the rest, to limit memory
        for place in places:
            if place not in kept:
                end = min((place + 1) * self.height, self.raster.size[0])
                kept[place] = self.raster.load(slice(place * self.height, end), self.columns)

    def cut(self, rows: slice, columns: slice) -> NDArray:
        """A window of the current lines, (h, w, C)."""
        return self.raster.numbers(*self._cut(rows, columns))

    def known(self, rows: slice) -> NDArray[np.bool_]:
        """Valid pixels, (h, w), of some of the current lines."""
        if not self.raster.has_gaps:
            return np.ones((rows.stop - rows.start, self.columns.stop - self.columns.start), bool)
        return self.raster.known(*self._cut(rows, self.columns))

    def _cut(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_] | None]:
        across = slice(columns.start - self.columns.start, columns.stop - self.columns.start)
        values: list[NDArray] = []
        opaque: list[NDArray[np.bool_]] = []
        for place in range(rows.start // self.height, (rows.stop - 1) // self.height + 1):
            top = place * self.height
            down = slice(max(rows.start - top, 0), rows.stop - top)
            stored, clear = self._held[place]
            values.append(stored[:, down, across])
            if clear is not None:
                opaque.append(clear[down, across])
        whole = values[0] if len(values) == 1 else np.concatenate(values, axis=1)
        return whole, np.concatenate(opaque) if opaque else None
