"""Lists of labelled images: as files on disk or as one array in memory.

Sizes: N images, C classes, H x W pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vimamba.data.masked import FilePair, relative_name
from vimamba.data.pixels import StoredImage, as_view, read_pixels, select_bands

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")


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

    def item(self, index: int) -> StoredImage:
        """One image."""
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
        return relative_name(self.paths[index], self.root)

    def item(self, index: int) -> FilePair:
        """One image."""
        return FilePair(self.paths[index], None, self.root)

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """Names of the image's classes."""
        return label_text(self.labels[index], class_names)

    def take(self, indices: Sequence[int] | NDArray) -> "FileSamples":
        """The chosen images, in the order given."""
        paths = tuple(self.paths[int(i)] for i in indices)
        return FileSamples(paths, self.labels[np.asarray(indices, dtype=np.int64)], self.root)


@dataclass(frozen=True)
class ArrayImage:
    """An image held in memory.

    Attributes:
        name: What to call it.
        pixels: (H, W) or (H, W, C).
    """

    name: str
    pixels: NDArray

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, C)."""
        return self.pixels if self.pixels.ndim == 3 else self.pixels[:, :, None]

    def limits(self, percentiles: tuple[float, float]) -> None:
        """The image is a case by itself."""


@dataclass(frozen=True)
class ArraySamples:
    """Images held in memory.

    Attributes:
        images: (N, H, W) or (N, H, W, 3) uint8.
        labels: As in `Samples`.
        prefix: Image i is called `prefix[numbers[i]]`.
        numbers: (N,) int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray
    prefix: str
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def name(self, index: int) -> str:
        """Name of the array and the image's place in it."""
        return f"{self.prefix}[{self.numbers[index]}]"

    def item(self, index: int) -> ArrayImage:
        """One image."""
        return ArrayImage(self.name(index), self.images[index])

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """Names of the image's classes."""
        return label_text(self.labels[index], class_names)

    def take(self, indices: Sequence[int] | NDArray) -> "ArraySamples":
        """The chosen images, in the order given."""
        at = np.asarray(indices, dtype=np.int64)
        return ArraySamples(self.images[at], self.labels[at], self.prefix, self.numbers[at])


def label_text(label: NDArray | np.integer, class_names: Sequence[str]) -> str:
    """Name of a class index, or the names of a multi-hot row joined by `;`."""
    chosen = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
    return ";".join(class_names[index] for index in chosen)


def read_image(path: Path, in_chans: int = 3) -> NDArray[np.uint8]:
    """An image file to look at; networks get theirs from `vimamba.data.preprocessing`.

    Args:
        path: The file.
        in_chans: 1 (grey) or 3 (RGB).

    Returns:
        (H, W, in_chans); of more than 8 bits stretched to the image's own range, of many bands the
        first three.

    Raises:
        DataError: The file is missing, damaged or no image; the text names it.
    """
    return select_bands(as_view(read_pixels(path)), in_chans, None, f"image {path}")


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts `class 2` before `class 10`."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts if part]


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder, at any depth, in natural order; hidden ones are left out."""
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder).as_posix()))
