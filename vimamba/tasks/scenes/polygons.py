"""Maps as polygons with areas, in GeoJSON (longitude and latitude) or a GeoPackage."""

import json
import struct
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.warp import transform

from vimamba.data.rasters import gdal_errors
from vimamba.errors import UsageError
from vimamba.tasks.scenes.maps import Legend

ENDINGS = {"geojson": ".geojson", "gpkg": ".gpkg"}
LONGITUDE_LATITUDE = CRS.from_epsg(4326)
# polygons projected at a time
BATCH = 1000
# decimals of a degree, a centimeter on the ground
DIGITS = 7

# outline and holes, (N, 2) points each, the last one the first
Rings = list[NDArray[np.float64]]
# class index, polygon in map coordinates, area in square meters
Found = tuple[int, Rings, float | None]


def local_meters(crs: CRS, point: tuple[float, float]) -> CRS:
    """A CRS in meters around a point: Lambert's equal-area projection, centered there.

    Args:
        crs: CRS of the point.
        point: x and y.
    """
    (longitude,), (latitude,), *_ = transform(crs, LONGITUDE_LATITUDE, [point[0]], [point[1]])
    place = f"+lat_0={latitude} +lon_0={longitude}"
    return CRS.from_proj4(f"+proj=laea {place} +datum=WGS84 +units=m")


def area(rings: Rings) -> float:
    """Area of a polygon with holes, in squared units of its coordinates."""
    total = 0.0
    for place, ring in enumerate(rings):
        x, y = (ring - ring[0]).T  # relative to a vertex, for precision
        enclosed = abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
        total += -enclosed if place else enclosed
    return float(total)


def project(polygons: Sequence[Rings], crs: CRS, onto: CRS) -> list[Rings]:
    """Reproject polygons in one call, because each call is slow."""
    rings = [ring for polygon in polygons for ring in polygon]
    points = np.concatenate(rings)
    there = np.stack(transform(crs, onto, points[:, 0], points[:, 1])[:2], axis=1)
    left = iter(np.split(there, np.cumsum([len(ring) for ring in rings])[:-1]))
    return [[next(left) for _ in polygon] for polygon in polygons]


def find_polygons(file: Any, legend: Legend) -> Iterator[list[Found]]:
    """The polygons of a map, without the background, in batches.

    Args:
        file: An open map.
        legend: Its classes.
    """
    middle = np.reshape(file.transform, (3, 3)) @ (file.width / 2, file.height / 2, 1)
    meters = local_meters(file.crs, (middle[0], middle[1])) if file.crs else None
    places = {value: place for place, value in enumerate(legend.values)}
    if legend.background:
        del places[legend.values[0]]
    found = (
        (places[int(value)], [np.asarray(ring) for ring in geometry["coordinates"]])
        for geometry, value in shapes(rasterio.band(file, 1), transform=file.transform)
        if int(value) in places
    )
    while batch := list(islice(found, BATCH)):
        areas: list[float | None] = [None] * len(batch)
        if meters is not None:
            there = project([rings for _, rings in batch], file.crs, meters)
            areas = [area(rings) for rings in there]
        yield [(*pair, size) for pair, size in zip(batch, areas, strict=True)]


def write_polygons(map_file: Path, path: Path, legend: Legend) -> int:
    """Write the polygons of a map in the format given by the file's suffix.

    Args:
        map_file: The map.
        path: A .geojson or .gpkg.
        legend: Its classes.

    Returns:
        Their number.
    """
    with gdal_errors(map_file), rasterio.open(map_file) as file:
        found = find_polygons(file, legend)
        if path.suffix == ENDINGS["geojson"]:
            return write_geojson(found, file.crs, path, legend)
        return write_geopackage(found, file.crs, path, legend)


def write_geojson(found: Iterator[list[Found]], crs: CRS | None, path: Path, legend: Legend) -> int:
    """RFC 7946: longitude and latitude; without a CRS, the map's own coordinates."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for batch in found:
            polygons = [rings for _, rings, _ in batch]
            if crs is not None:
                polygons = project(polygons, crs, LONGITUDE_LATITUDE)
            for (place, _, size), rings in zip(batch, polygons, strict=True):
                points = [np.round(ring, DIGITS).tolist() for ring in rings]
                geometry = {"type": "Polygon", "coordinates": points}
                properties = {"class": legend.names[place], "value": legend.values[place]}
                if size is not None:
                    properties["area_m2"] = round(size, 2)
                feature = {"type": "Feature", "properties": properties, "geometry": geometry}
                file.write(f"{',' if count else ''}\n{json.dumps(feature)}")
                count += 1
        file.write("\n]}\n")
    return count


def write_geopackage(
    found: Iterator[list[Found]], crs: CRS | None, path: Path, legend: Legend
) -> int:
    """Write a layer in the map's own CRS.

    Raises:
        UsageError: pyogrio is not installed.
    """
    try:
        from pyogrio.raw import write
    except ImportError:
        raise UsageError(
            "a GeoPackage needs pyogrio: pip install 'vimamba[geo]', or use --polygons geojson"
        ) from None
    count, batches = 0, chain(found, [[]])  # the empty batch ensures that a file is written
    for batch in batches:
        if not batch and count:
            break
        names = np.asarray([legend.names[place] for place, _, _ in batch], dtype=object)
        values = np.asarray([legend.values[place] for place, _, _ in batch], dtype=np.int32)
        areas = np.asarray([np.nan if size is None else size for *_, size in batch])
        write(
            path,
            np.asarray([as_wkb(rings) for _, rings, _ in batch], dtype=object),
            [names, values, areas],
            ["class", "value", "area_m2"],
            driver="GPKG",
            layer="map",
            geometry_type="Polygon",
            crs=None if crs is None else crs.to_wkt(),
            append=count > 0,
        )
        count += len(batch)
    return count


def as_wkb(rings: Rings) -> bytes:
    """A polygon as well-known binary."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), ring.astype("<f8").tobytes()]
    return b"".join(parts)
