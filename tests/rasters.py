"""Generated rasters for tests."""

import numpy as np
import rasterio
from rasterio.transform import from_origin

METERS = from_origin(500_000, 5_000_000, 10, 10)


def write_raster(path, pixels, *, transform=METERS, crs="EPSG:32633", mask=None, **profile):
    """Write (H, W, C) or (H, W) as a GeoTIFF."""
    planes = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = planes.shape
    options = {"driver": "GTiff", "count": bands, "height": height, "width": width, **profile}
    with rasterio.open(
        path, "w", dtype=planes.dtype, crs=crs, transform=transform, **options
    ) as file:
        file.write(planes)
        if mask is not None:
            file.write_mask(mask)
    return path
