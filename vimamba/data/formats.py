"""One interface to all image formats: header, bands, and values as stored.

TIFF is read by tifffile, deep color by imagecodecs, everything else by Pillow. Images are rotated
upright according to the file's orientation tag.

Sizes: H x W pixels, C bands.
"""

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION_TAG, NODATA_TAG = 0x0112, 42113
# for each orientation: swap the axes, then flip the rows, then the columns
TURNS = {
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip
# little- and big-endian, 32 and 64 bits
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BLURRING = ("JPEG", "MPO")
# TIFF compressions: several kinds of JPEG, and others that are converted to RGB in decoding
BLURRING_TIFF = (6, 7, 33007, 34892)
RGB_TIFF = (*BLURRING_TIFF, 33003, 33005, 34712)
_PILLOW_LIMIT = threading.Lock()


@dataclass(frozen=True)
class Head:
    """Header information of an image file.

    Attributes:
        size: Height and width, upright.
        bands: Number of bands without transparency.
        deep: The values are not 8-bit integers.
        transparent: There is an alpha band or a transparent color.
        palette: The values are indices into a color table.
        pages: Images in the file, without reduced-resolution copies of the first.
        nodata: Value of invalid pixels.
    """

    size: tuple[int, int]
    bands: int
    deep: bool
    transparent: bool = False
    palette: bool = False
    pages: int = 1
    nodata: float | None = None


class ImageFile(ABC):
    """An open file.

    Attributes:
        head: Its header information.
        blurring: Its compression is lossy.
    """

    head: Head
    blurring: bool

    @abstractmethod
    def bands(self, wanted: int | None) -> NDArray:
        """The bands, (H, W, C); see `vimamba.data.pixels.read_pixels`."""

    @abstractmethod
    def stored(self) -> NDArray:
        """Stored values, (H, W) or (H, W, C), without converting palettes to colors."""


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """Open a file by its content, not its name.

    Raises:
        Exception: Of any kind, as raised by decoders for damaged files.
    """
    with path.open("rb") as file:
        is_tiff = file.read(4) in TIFF_STARTS
    if is_tiff:
        import tifffile

        with tifffile.TiffFile(path) as opened:
            yield TiffImage(opened)
    else:
        with _open_pillow(path) as image:
            yield PillowImage(image, path)


def _open_pillow(path: Path) -> Image.Image:
    """`Image.open` without its pixel limit; `check_memory` checks the available memory instead."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_memory(needed: int) -> None:
    """Fail if an image does not fit into memory; a damaged header may claim any size.

    Args:
        needed: Bytes of the decoded image.

    Raises:
        MemoryError: Less memory is free.
    """
    # not worth checking for small images
    if needed > 1 << 28 and (free := free_memory()) is not None and needed > free:
        raise MemoryError(f"{needed / 1e9:.1f} GB as pixels, {free / 1e9:.1f} GB are free")


def free_memory() -> int | None:
    """Bytes available without swapping, if the system reports them."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows
        return None


def turn_upright(pixels: NDArray, orientation: int) -> NDArray:
    """Apply the orientation tag to (H, W, ...); returns a view."""
    exchange, rows, columns = TURNS.get(orientation, (False, False, False))
    pixels = pixels.swapaxes(0, 1) if exchange else pixels
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width after `turn_upright`."""
    return (width, height) if TURNS.get(orientation, (False,))[0] else (height, width)


def as_numbers(pixels: NDArray, nodata: float | None) -> NDArray:
    """Convert values to one of a few types, with NaN for nodata.

    Args:
        pixels: Any type.
        nodata: Value of invalid pixels.

    Returns:
        uint8 and uint16 unchanged; everything else as float32. 8-bit values with nodata become
        float16, which represents both the values and NaN.
    """
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"it holds values of type {pixels.dtype}")
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    missing = None if pixels.dtype.kind != "f" else ~np.isfinite(pixels)
    value = None if nodata is None else as_type(nodata, pixels.dtype)
    if value is not None:
        missing = pixels == value if missing is None else missing | (pixels == value)
    gaps = missing is not None and bool(missing.any())
    if pixels.dtype in (np.uint8, np.uint16) and not gaps:
        return pixels
    with np.errstate(over="ignore"):
        numbers = pixels.astype(np.float16 if pixels.dtype == np.uint8 else np.float32)
    if gaps:
        assert missing is not None
        numbers[missing] = np.nan
    return numbers


def as_type(number: float, dtype: np.dtype) -> Any:
    """A number converted to an array's dtype; None if it cannot occur there."""
    if dtype.kind == "f":
        # GDAL writes float32's lowest number as -3.4028234663852886e+38
        with np.errstate(over="ignore"):
            return dtype.type(number)
    if dtype.kind == "b" or not np.isfinite(number) or number != int(number):
        return None
    limits = np.iinfo(dtype)
    return dtype.type(int(number)) if limits.min <= number <= limits.max else None


def read_orientation(image: Any, path: Path) -> int:
    """Orientation of an image opened by Pillow."""
    # Pillow decodes the whole PNG to look for a tag after the pixels, which is rare
    if image.format != "PNG" or "exif" in image.info or has_exif(path):
        return image.getexif().get(ORIENTATION_TAG, 1)
    return Image.Image.getexif(image).get(ORIENTATION_TAG, 1)


def has_exif(path: Path) -> bool:
    """Whether a PNG has an EXIF chunk, before or after its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"eXIf":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


class PillowImage(ImageFile):
    """All formats except TIFF.

    Args:
        image: The opened image.
        path: The file, for decoders other than Pillow's.
    """

    def __init__(self, image: Any, path: Path) -> None:
        self.image, self.path = image, path
        self._check_memory()
        # before the orientation, for which Pillow may have to decode and drop its tiles
        self.decoder = self._deep_decoder()
        mode, tile = image.mode, str(getattr(image, "tile", ""))
        self.orientation = read_orientation(image, path)
        self.blurring = image.format in BLURRING
        is_number = mode == "F" or mode.startswith("I")
        is_grey = mode in ("1", "L", "LA", "La") or "LA;16B" in tile
        self.mode = "L" if is_grey else "RGB"
        self.head = Head(
            upright_size(image.height, image.width, self.orientation),
            1 if is_number or is_grey else 3,
            deep=is_number or self.decoder is not None,
            transparent=image.has_transparency_data and not is_number,
            palette=mode in ("P", "PA"),
            pages=getattr(image, "n_frames", 1) if image.format in ("GIF", "WEBP", "PNG") else 1,
        )

    def _deep_decoder(self) -> Any:
        """Decoder for 16-bit color, which Pillow reduces to 8 bits; None if not needed."""
        image, tiles = self.image, getattr(self.image, "tile", ())
        if len(image.getbands()) < 3 or not tiles:
            return None
        arguments = tiles[0][3]
        if image.format == "PNG" and ";16B" in str(arguments):
            import imagecodecs

            return imagecodecs.png_decode
        if image.format == "PPM" and tiles[0][0] == "ppm" and arguments[1] > 255:
            height, width, offset = image.height, image.width, tiles[0][2]
            return lambda data: (
                np.frombuffer(data, ">u2", offset=offset, count=height * width * 3)
                .reshape(height, width, 3)
                .astype(np.uint16)
            )
        if image.format == "JPEG2000":
            import imagecodecs

            return imagecodecs.jpeg2k_decode
        return None

    def _check_memory(self) -> None:
        image = self.image
        each = 4 if image.mode in ("I", "F") or len(image.getbands()) > 1 else 1
        check_memory(image.height * image.width * (each + len(image.getbands())))

    def bands(self, wanted: int | None) -> NDArray:
        """The bands, (H, W, C)."""
        image, head = self.image, self.head
        deep = self.decoder(self.path.read_bytes()) if self.decoder is not None else None
        if deep is not None and deep.dtype != np.uint8:
            pixels = deep if deep.ndim == 3 else deep[:, :, None]
            if head.transparent and pixels.shape[2] != wanted:
                pixels = pixels[:, :, :-1]
        elif image.mode == "F":
            pixels = np.asarray(image)
        elif image.mode.startswith("I"):
            # PGM and PNG have at most 16 bits, though Pillow may use 32 for them
            is_long = image.mode == "I" and image.format not in ("PPM", "PNG")
            pixels = np.asarray(image).astype(np.int32 if is_long else np.uint16)
        else:
            keep = head.transparent and wanted == head.bands + 1
            # colors with a transparency table cannot be read without it
            if keep or (head.transparent and image.mode == "P"):
                image = image.convert(f"{self.mode}A")
            if not keep and image.mode != self.mode:
                image = image.convert(self.mode)
            pixels = np.asarray(image)
        pixels = turn_upright(pixels if pixels.ndim == 3 else pixels[:, :, None], self.orientation)
        return as_numbers(pixels, None)

    def stored(self) -> NDArray:
        """Stored values."""
        return turn_upright(np.asarray(self.image), self.orientation)


class TiffImage(ImageFile):
    """The first page of a TIFF that is not a reduced copy of another.

    Args:
        file: An open `tifffile.TiffFile`.
    """

    def __init__(self, file: Any) -> None:
        import tifffile

        kinds = tifffile.PHOTOMETRIC
        pages = [page for page in file.pages if not getattr(page, "subfiletype", 0) & 5]
        if not pages:
            raise ValueError("it holds no image")
        self.page: Any = pages[0].aspage()
        page = self.page
        self.pages = pages
        if page.dtype is None or not set(page.axes) <= set("YXS"):
            raise ValueError(f"its first page has the axes {page.axes or 'none'}, not two")
        known = {kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB, kinds.PALETTE, kinds.MASK,
                 kinds.SEPARATED, kinds.YCBCR}  # fmt: skip
        if page.photometric not in known:
            raise ValueError(f"colors of the kind {page.photometric} are not known")
        self.photometric = kinds(page.photometric)
        self.blurring = page.compression in BLURRING_TIFF
        tag = page.tags.get(ORIENTATION_TAG)
        self.orientation = int(tag.value) if tag else 1
        samples = page.samplesperpixel
        # transparency that is not the last band, or occurs twice, cannot be distinguished from data
        alphas = [int(extra) in (1, 2) for extra in page.extrasamples]
        self.transparent = samples > 1 and sum(alphas) == 1 and alphas[-1]
        colors = 3 if self.photometric in (kinds.PALETTE, kinds.SEPARATED) else samples
        self.head = Head(
            upright_size(page.imagelength, page.imagewidth, self.orientation),
            colors - (1 if self.transparent and colors == samples else 0),
            deep=self.photometric != kinds.PALETTE
            and (page.dtype.kind not in "ub" or page.bitspersample > 8),
            transparent=self.transparent,
            palette=self.photometric == kinds.PALETTE,
            pages=len(pages),
            nodata=parse_nodata(page),
        )

    def stored(self) -> NDArray:
        """Stored values."""
        return turn_upright(self._read(self.page), self.orientation)

    def _read(self, page: Any) -> NDArray:
        """(H, W) or (H, W, C) of a page."""
        check_memory(page.nbytes)
        end = page.parent.filehandle.size
        parts = zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(offset + count > end for offset, count in parts):
            raise ValueError("it is cut off")
        # one thread each: the loading processes share the cores
        pixels = page.asarray(maxworkers=1)
        if page.axes.startswith("S"):  # bands stored separately
            pixels = np.moveaxis(pixels, 0, -1)
        return pixels

    def bands(self, wanted: int | None) -> NDArray:
        """The bands, (H, W, C)."""
        pages = [self.page]
        if self.head.bands == 1 and len(self.pages) == wanted:
            pages = [page.aspage() for page in self.pages]
        parts = [self._read(page) for page in pages]
        if any(part.shape != parts[0].shape for part in parts):
            parts = parts[:1]
        stacked = parts[0] if len(parts) == 1 else np.stack(parts, axis=-1)
        pixels = stacked if stacked.ndim == 3 else stacked[:, :, None]
        pixels = self._colors(pixels)
        if self.transparent and pixels.shape[2] not in (wanted, self.head.bands):
            pixels = pixels[:, :, :-1]
        pixels = turn_upright(pixels, self.orientation)
        return as_numbers(pixels, self.head.nodata)

    def _colors(self, pixels: NDArray) -> NDArray:
        """Convert to the usual meaning: 0 is black, bands are data or RGB."""
        import tifffile

        kinds, bits, kind = tifffile.PHOTOMETRIC, self.page.bitspersample, self.photometric
        if kind == kinds.PALETTE:
            table = (np.asarray(self.page.colormap) >> 8).astype(np.uint8)
            return np.moveaxis(table[:, pixels[:, :, 0]], 0, -1)
        if kind == kinds.SEPARATED and pixels.shape[2] >= 4:
            return cmyk_to_rgb(pixels[:, :, :4])
        if kind == kinds.YCBCR and self.page.compression not in RGB_TIFF:
            image = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]), "YCbCr")
            return np.asarray(image.convert("RGB"))
        if pixels.dtype == np.bool_ or (bits < 8 and pixels.dtype == np.uint8):
            pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
            bits = 8
        if kind == kinds.MINISWHITE and pixels.dtype.kind == "u":
            pixels = pixels.dtype.type(2**bits - 1) - pixels
        return pixels


def parse_nodata(page: Any) -> float | None:
    """GDAL's nodata value of a page."""
    tag = page.tags.get(NODATA_TAG)
    if tag is None:
        return None
    try:
        return float(str(tag.value).strip(" \0"))
    except ValueError:
        raise ValueError(f"its GDAL_NODATA is {tag.value!r}, which is not a number") from None


def cmyk_to_rgb(pixels: NDArray) -> NDArray:
    """(H, W, 4) unsigned integers, 0 for no ink, to (H, W, 3) of the same type."""
    full = np.iinfo(pixels.dtype).max
    light = np.float32(full) - pixels.astype(np.float32)
    return np.rint(light[:, :, :3] * light[:, :, 3:] / full).astype(pixels.dtype)
