"""Lists of labelled images: as files on disk or as one array in memory.

Sizes: N images, C classes, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vimamba.data.errors import DataError
from vimamba.data.listing import list_files
from vimamba.data.remarks import Remarks

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm",
)  # fmt: skip
PIXEL_MODES = {1: "L", 3: "RGB"}


class Listed(Protocol):
    """N images with names and labels to write down."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a table or an error."""
        ...

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """The label in words."""
        ...


class Samples(Listed, Protocol):
    """N images and their labels."""

    @property
    def labels(self) -> NDArray:
        """(N,) int64 class indices, or (N, C) float32 of zeros and ones for multi-label data."""
        ...

    def image(self, index: int, in_chans: int) -> NDArray[np.uint8]:
        """Pixels, (H, W, in_chans)."""
        ...

    def take(self, indices: Sequence[int] | NDArray) -> "Samples":
        """The chosen images, in the order given."""
        ...


@dataclass(frozen=True)
class FileSamples:
    """Image files, read when asked for.

    Attributes:
        paths: N files.
        labels: As in `Samples`.
        root: Folder that names are given relative to.
    """

    paths: tuple[Path, ...]
    labels: NDArray
    root: Path

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path relative to the root, with forward slashes."""
        path = self.paths[index]
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def image(self, index: int, in_chans: int) -> NDArray[np.uint8]:
        """Pixels, (H, W, in_chans)."""
        return read_image(self.paths[index], in_chans)

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """Names of the image's classes."""
        return label_text(self.labels[index], class_names)

    def take(self, indices: Sequence[int] | NDArray) -> "FileSamples":
        """The chosen images, in the order given."""
        paths = tuple(self.paths[int(i)] for i in indices)
        return FileSamples(paths, self.labels[np.asarray(indices, dtype=np.int64)], self.root)

    def join(self, other: "FileSamples") -> "FileSamples":
        """These images, then the others, which have the same root."""
        labels = np.concatenate([self.labels, other.labels])
        return FileSamples(self.paths + other.paths, labels, self.root)


@dataclass(frozen=True)
class ArraySamples:
    """Images held in memory.

    Attributes:
        images: (N, H, W) or (N, H, W, 3) uint8.
        labels: As in `Samples`.
        names: N names.
    """

    images: NDArray[np.uint8]
    labels: NDArray
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def name(self, index: int) -> str:
        """Name of the array and the image's place in it."""
        return self.names[index]

    def image(self, index: int, in_chans: int) -> NDArray[np.uint8]:
        """Pixels, (H, W, in_chans)."""
        return to_channels(Image.fromarray(self.images[index]), in_chans)

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """Names of the image's classes."""
        return label_text(self.labels[index], class_names)

    def take(self, indices: Sequence[int] | NDArray) -> "ArraySamples":
        """The chosen images, in the order given."""
        at = np.asarray(indices, dtype=np.int64)
        return ArraySamples(
            self.images[at], self.labels[at], tuple(self.names[int(i)] for i in indices)
        )

    def join(self, other: "ArraySamples") -> "ArraySamples":
        """These images, then the others."""
        return ArraySamples(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
            self.names + other.names,
        )


def label_text(label: NDArray | np.integer, class_names: Sequence[str]) -> str:
    """Name of a class index, or the names of a multi-hot row joined by `;`."""
    chosen = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
    return ";".join(class_names[index] for index in chosen)


def to_channels(image: Image.Image, in_chans: int) -> NDArray[np.uint8]:
    """Pixels of any Pillow image as (H, W, in_chans) uint8; 16-bit images keep their upper bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    pixels = np.asarray(image.convert(PIXEL_MODES[in_chans]))
    return pixels[:, :, None] if in_chans == 1 else pixels


def read_image(path: Path, in_chans: int = 3) -> NDArray[np.uint8]:
    """Pixels of an image file, turned upright as its EXIF tag asks.

    Args:
        path: The file.
        in_chans: 1 (grey) or 3 (RGB).

    Returns:
        (H, W, in_chans) uint8.

    Raises:
        DataError: The file is missing, damaged or no image; the text names it.
    """
    try:
        with Image.open(path) as image:
            return to_channels(ImageOps.exif_transpose(image), in_chans)
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from None


def list_images(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """Image files below a folder, at any depth, in natural order.

    Args:
        folder: Where to look; linked folders are followed.
        remarks: Gets what is left out: hidden files, thumbnails, other kinds of files.

    Raises:
        DataError: A folder cannot be read.
    """
    return list_files(folder, IMAGE_SUFFIXES, remarks)
