"""Reads images of any format, depth and number of bands, always upright.

This is the one reader of all tasks and commands; masks are read by `masked.items`.

Sizes: H x W pixels, C bands.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimamba.data.errors import DataError
from vimamba.data.formats import Head, open_image

# BT.601, Pillow's weights for RGB to gray
LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


@contextmanager
def reading(path: Path, what: str = "image") -> Iterator[None]:
    """Turn any exception in reading a file into an error that names it.

    Args:
        path: The file.
        what: Kind of the file.
    """
    try:
        yield
    except (DataError, ImportError):
        raise
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except MemoryError as error:
        raise DataError(f"{what} {path} does not fit into memory: {error}") from None
    except Exception as error:  # decoders may raise anything on damaged files
        plain = isinstance(error, OSError | ValueError)
        reason = str(error) if plain else f"{type(error).__name__}: {error}"
        raise DataError(f"{what} {path} cannot be read: {' '.join(reason.split())}") from error


def read_pixels(path: Path, wanted: int | None = None) -> NDArray:
    """Pixels of an image file.

    Palettes, CMYK and YCbCr become RGB, 1-bit images 0 and 255. Invalid pixels (GDAL's nodata, or
    not finite) become NaN.

    Args:
        path: The file.
        wanted: Number of bands to look for. Transparency, and additional pages of one band each,
            count as bands only if they add up to this number; otherwise they are dropped.

    Returns:
        (H, W, C) uint8, uint16, or float32 for all other types. 8-bit images with invalid pixels
        are returned as float16, which represents both.

    Raises:
        DataError: The file is missing, damaged, not an image or larger than the memory; the message
            names it.
    """
    with reading(path), open_image(path) as image:
        return image.bands(wanted)


def read_head(path: Path) -> Head:
    """The header of an image file, without reading all of it.

    Raises:
        DataError: As for `read_pixels`.
    """
    with reading(path), open_image(path) as image:
        return image.head


def image_size(path: Path) -> tuple[int, int]:
    """Height and width, upright, from the file's header."""
    return read_head(path).size


def select_bands(
    pixels: NDArray, in_chans: int, bands: Sequence[int] | None, source: str
) -> NDArray:
    """Select the network's input channels.

    Args:
        pixels: (H, W, C).
        in_chans: Number of channels; gray is repeated for 3 and RGB converted to gray for 1.
        bands: Indices of the channels in the file, from 0; None takes all.
        source: Name of the image in errors.

    Returns:
        (H, W, in_chans).
    """
    have = pixels.shape[2]
    if bands is not None:
        if max(bands) >= have:
            raise DataError(f"{source} has {have} bands; bands={list(bands)} do not all exist")
        return pixels[:, :, list(bands)]
    if have == in_chans:
        return pixels
    if have == 1 and in_chans == 3:
        return np.repeat(pixels, 3, axis=2)
    if have == 3 and in_chans == 1:
        return to_grey(pixels)
    raise DataError(
        f"{source} has {have} bands, in_chans={in_chans}; set in_chans={have} or name the bands"
    )


def to_grey(pixels: NDArray) -> NDArray:
    """(H, W, 3) to (H, W, 1) of the same type; 8 bits exactly as in Pillow."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    gray = pixels.astype(np.float32, copy=False) @ LUMA
    return (np.rint(gray) if pixels.dtype.kind == "u" else gray).astype(pixels.dtype)[..., None]


def wanted_bands(in_chans: int, bands: Sequence[int] | None) -> int:
    """The number of bands to look for in a file, for `read_pixels`."""
    return in_chans if bands is None else max(bands) + 1


def percentile_limits(pixels: NDArray, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
    """Percentiles of the finite values of each channel, (C,) each.

    Args:
        pixels: (..., C).
        percentiles: Low and high, in [0, 100].
    """
    channels = pixels.reshape(-1, pixels.shape[-1]).T
    found = []
    for values in channels:
        known = values if values.dtype.kind in "ui" else values[np.isfinite(values)]
        # float16, used for 8 bits with invalid pixels, is too coarse to interpolate
        known = known.astype(np.float32) if known.dtype == np.float16 else known
        found.append(np.percentile(known, percentiles) if known.size else (0, 1))
    low, high = np.asarray(found, dtype=np.float32).T
    return low, high


def as_view(pixels: NDArray) -> NDArray[np.uint8]:
    """Convert stored values to a viewable image.

    The first three bands are shown, or the first. Deeper values are stretched to their own range; a
    constant image keeps its position in the range of its type.

    Args:
        pixels: (H, W, C) as returned by `read_pixels`.

    Returns:
        (H, W, 3) or (H, W, 1).
    """
    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
    if shown.dtype == np.uint8:
        return shown
    if shown.dtype == np.float16:
        return np.nan_to_num(shown).astype(np.uint8)
    low, high = percentile_limits(shown, (0.5, 99.5))
    # one range for all bands, to preserve colors
    least, most = np.float32(low.min()), np.float32(high.max())
    if least == most:
        least, most = np.float32(0), np.float32(65535 if shown.dtype == np.uint16 else 1)
    values = (shown.astype(np.float32) - least) / (most - least)
    return np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)


def read_image(path: Path, in_chans: int = 3) -> NDArray[np.uint8]:
    """Read an image file for viewing; networks use `vimamba.data.preprocessing`.

    Args:
        path: The file.
        in_chans: 1 (gray) or 3 (RGB).

    Returns:
        (H, W, in_chans); more than 8 bits are stretched to the image's own range, of many bands the
        first three are used.

    Raises:
        DataError: The file is missing, damaged or not an image; the message names it.
    """
    return select_bands(as_view(read_pixels(path)), in_chans, None, f"image {path}")
