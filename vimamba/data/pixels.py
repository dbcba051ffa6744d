"""Reads images and masks as they are stored: any depth, any number of bands, palettes kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vimamba.data.errors import DataError
from vimamba.data.labels import mask_values

TIFF_SUFFIXES = (".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe")
# BT.601, what Pillow makes grey of RGB with
LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError)


def read_pixels(path: Path) -> NDArray:
    """Pixels of an image file, turned upright as its EXIF tag asks.

    Args:
        path: The file. Palettes become RGB and transparency is dropped, except from TIFF, whose
            bands are all data.

    Returns:
        (H, W, C) uint8, uint16 or float32.

    Raises:
        DataError: The file is missing, damaged or no image; the text names it.
    """
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            return read_tiff(path)
        with Image.open(path) as image:
            if is_deep_colour(image):
                return read_deep_colour(path)
            if image.mode.startswith("I"):
                return np.asarray(image).astype(np.uint16)[:, :, None]
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("L" if image.mode in ("L", "LA", "1") else "RGB"))
            return pixels[:, :, None] if pixels.ndim == 2 else pixels
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist") from None
    except UNREADABLE as error:
        raise DataError(f"image {path} cannot be read: {error}") from None


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a PNG has 16 bits per channel and several channels, which Pillow cuts to 8."""
    tile = str(getattr(image, "tile", ""))
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16B" in tile


def read_deep_colour(path: Path) -> NDArray:
    """A 16-bit colour PNG, without transparency, (H, W, 3) uint16."""
    import cv2

    found: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise ValueError("it is damaged")
    return np.ascontiguousarray(found[:, :, 2::-1])


def read_tiff(path: Path) -> NDArray:
    """The first page of a TIFF, (H, W, C); doubles become float32."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            pixels, axes = page.asarray(), page.axes
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                return np.asarray(Image.open(path).convert("RGB"))
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from None
    if axes.startswith("S"):  # bands stored one after another
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    return pixels.astype(np.uint8 if pixels.dtype == np.bool_ else np.float32)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's head, turned as its EXIF tag asks."""
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            import tifffile

            with tifffile.TiffFile(path) as file:
                page: Any = file.pages[0]
                return page.imagelength, page.imagewidth
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
            return (width, height) if turned else (height, width)
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist") from None
    except (*UNREADABLE, IndexError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from None


def read_mask(path: Path) -> NDArray:
    """Values of a mask file as stored: palette indices, integers, or colours.

    JPEG blurs values, so its masks hold 0 and 255 only and are cut at half of the range.

    Returns:
        (H, W) integers, or (H, W, 3) uint8 if the file is in colour.

    Raises:
        DataError: The file is missing or damaged, or it cannot be told what its pixels stand for;
            the text names it.
    """
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            values = read_tiff_mask(path)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"mask {path} does not exist") from None
    except UNREADABLE as error:
        raise DataError(f"mask {path} cannot be read: {error}") from None
    return mask_values(values, str(path), blurred=path.suffix.lower() in JPEG_SUFFIXES)


def read_tiff_mask(path: Path) -> NDArray:
    """Stored values of a TIFF mask; a palette's indices are not turned into colours."""
    import tifffile

    try:
        return tifffile.imread(path, key=0)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from None


def select_bands(
    pixels: NDArray, in_chans: int, bands: Sequence[int] | None, source: str
) -> NDArray:
    """The channels that the network gets.

    Args:
        pixels: (H, W, C).
        in_chans: Channels wanted; grey is repeated for 3 and RGB averaged for 1.
        bands: Places of the channels in the file, from 0; None takes all.
        source: What to call the image in an error.

    Returns:
        (H, W, in_chans).
    """
    have = pixels.shape[2]
    if bands is not None:
        if max(bands) >= have:
            raise DataError(f"{source} has {have} bands; bands={list(bands)} are not all there")
        return pixels[:, :, list(bands)]
    if have == in_chans:
        return pixels
    if have == 1 and in_chans == 3:
        return np.repeat(pixels, 3, axis=2)
    if have == 3 and in_chans == 1:
        grey = pixels @ LUMA
        return (np.rint(grey).astype(pixels.dtype) if pixels.dtype.kind == "u" else grey)[..., None]
    raise DataError(
        f"{source} has {have} bands, in_chans={in_chans}; set in_chans={have} or name the bands"
    )
