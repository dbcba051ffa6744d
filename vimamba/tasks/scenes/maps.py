"""Maps as files: GeoTIFF with georeference, colors and class names, or Cloud Optimized GeoTIFF.

Sizes: H x W pixels, C classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from vimamba.data.rasters import Raster, gdal_errors
from vimamba.errors import UsageError
from vimamba.tasks.scenes.plan import BLOCK

# its type declaration accepts only a subclass of contexts
open_raster: Any = rasterio.open
# nodata value of maps and probabilities
NODATA = 255
# probability 1 in 8 bits
CERTAIN = 254
# metadata key with a map's source
TAG = "VIMAMBA"


@dataclass(frozen=True)
class Legend:
    """What the values of a map mean.

    Attributes:
        names: Names of the classes.
        values: Value of each class in the map, 0 to 254.
        colors: Red, green and blue of each class.
        background: The first class is background.
    """

    names: Sequence[str]
    values: Sequence[int]
    colors: Sequence[tuple[int, int, int]]
    background: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= value < NODATA for value in self.values):
            raise ValueError(f"values={list(self.values)} must lie in 0 to {NODATA - 1}")
        if not len(self.names) == len(self.values) == len(self.colors):
            raise ValueError(
                f"there are {len(self.names)} names, {len(self.values)} values and "
                f"{len(self.colors)} colors; expected one of each per class"
            )


@contextmanager
def new_raster(path: Path, like: Raster, bands: int, *, cog: bool, job: str) -> Iterator[Any]:
    """An 8-bit GeoTIFF with the georeference of a raster, to write by block rows.

    Args:
        path: The file.
        like: The raster.
        bands: Number of bands.
        cog: Write a Cloud Optimized GeoTIFF, with overviews by the most frequent value for a single
            band, by the mean for several.
        job: Source of the map, recorded in the file.
    """
    plain = path.with_name(f"{path.name}.plain.tif") if cog else path
    height, width = like.size
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8",
        "nodata": NODATA, "crs": like.crs, "transform": like.transform, "tiled": True,
        "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "bigtiff": "if_safer",
        "interleave": "band",
    }  # fmt: skip
    with gdal_errors(path):
        with open_raster(plain, "w", **profile) as file:
            file.update_tags(**{TAG: job})
            yield file
        if cog:
            options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": 512, "BIGTIFF": "IF_SAFER"}
            resampling = "MODE" if bands == 1 else "AVERAGE"
            rasterio.shutil.copy(
                plain, path, driver="COG", OVERVIEW_RESAMPLING=resampling, **options
            )
            plain.unlink()


def write_map(
    path: Path, like: Raster, rows: Iterable[NDArray], legend: Legend, *, cog: bool, job: str
) -> NDArray[np.int64]:
    """Write the class of every pixel.

    Args:
        path: The file.
        like: Raster with its georeference.
        rows: Block rows from the top, (n, W) values.
        legend: Meaning of the values.
        cog: As in `new_raster`.
        job: Source of the map.

    Returns:
        Pixels of each class, (C,).
    """
    counts = np.zeros(256, dtype=np.int64)
    with new_raster(path, like, 1, cog=cog, job=job) as file:
        colors = zip(legend.values, legend.colors, strict=True)
        file.write_colormap(1, {value: (*color, 255) for value, color in colors})
        pairs = zip(legend.values, legend.names, strict=True)
        file.set_band_description(1, ", ".join(f"{value} {name}" for value, name in pairs))
        for top, values in in_place(rows):
            counts += np.bincount(values.ravel(), minlength=256)
            file.write(values, 1, window=lines_at(top, values))
    return counts[list(legend.values)]


def write_probabilities(
    path: Path, like: Raster, rows: Iterable[NDArray], legend: Legend, *, cog: bool, job: str
) -> None:
    """Write an 8-bit band per class; `scales` records that 254 is 1.

    Args:
        path: The file.
        like: Raster with its georeference.
        rows: Block rows from the top, (C, n, W) of 0 to 254.
        legend: The classes.
        cog: As in `new_raster`.
        job: Source of the probabilities.
    """
    with new_raster(path, like, len(legend.names), cog=cog, job=job) as file:
        file.scales = (1 / CERTAIN,) * len(legend.names)
        for band, name in enumerate(legend.names, 1):
            file.set_band_description(band, name)
        for top, values in in_place(rows):
            file.write(values, window=lines_at(top, values))


def lines_at(top: int, values: NDArray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The window of whole lines (..., n, W) starting at line `top`."""
    lines, width = values.shape[-2:]
    return (top, top + lines), (0, width)


def in_place(rows: Iterable[NDArray]) -> Iterator[tuple[int, NDArray]]:
    """Block rows with their first line."""
    top = 0
    for values in rows:
        yield top, values
        top += values.shape[-2]


def is_finished(path: Path, job: str) -> bool:
    """Whether a map already exists.

    Raises:
        UsageError: Another file has its name.
    """
    if not path.exists():
        return False
    try:
        with gdal_errors(path), open_raster(path) as file:
            found = file.tags().get(TAG)
    except (ValueError, RasterioError):
        found = None
    if found is None:
        raise UsageError(f"{path} is not one of our maps; choose another --out")
    if found != job:
        raise UsageError(
            f"{path} was made from another scene or checkpoint, or with other options; choose "
            "another --out or remove it"
        )
    return True


def count_values(path: Path, legend: Legend) -> NDArray[np.int64]:
    """Pixels of each class of a map, (C,), read by block rows."""
    counts = np.zeros(256, dtype=np.int64)
    with gdal_errors(path), open_raster(path) as file:
        for top in range(0, file.height, BLOCK):
            lines = min(BLOCK, file.height - top)
            values = file.read(1, window=((top, top + lines), (0, file.width)))
            counts += np.bincount(values.ravel(), minlength=256)
    return counts[list(legend.values)]
