"""Items of data sets: images with a target, read on demand.

A kind of data adds its target to an item: a label, a mask, another image. Items with one image are
`StoredImage`s themselves; those with several, such as pairs, list them in `images`.

Sizes: H x W pixels, C bands.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from numpy.typing import NDArray

from vimamba.data.formats import Head, as_numbers
from vimamba.data.pixels import image_size, read_head, read_pixels

T = TypeVar("T")


class StoredImage(Protocol):
    """One image, read on demand."""

    @property
    def name(self) -> str:
        """Name of the image in tables and errors."""
        ...

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, C) uint8, uint16, or float32, with NaN for invalid pixels.

        Args:
            wanted: Number of bands to look for; see `vimamba.data.pixels.read_pixels`.
        """
        ...

    def head(self) -> Head | None:
        """The header of its file; None if it has no separate file."""
        ...

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray] | None:
        """Percentiles of the values of the case, for each band, (C,) each.

        None if the case is only this image.
        """
        ...


class Item(Protocol):
    """One or more images and a target."""

    @property
    def name(self) -> str:
        """Name in tables, errors and split.csv."""
        ...

    @property
    def group(self) -> str:
        """Items of one group, such as a patient, are never in two splits; "" for none."""
        ...

    def images(self) -> Sequence[StoredImage]:
        """Its images, from which the network's input is made."""
        ...

    def target_text(self, class_names: Sequence[str]) -> str:
        """The target as text: the classes, or the name of a file."""
        ...


class OneImage:
    """Base of items with one image; subclasses override what they know better."""

    def images(self) -> Sequence[StoredImage]:
        """The image itself."""
        return (cast(Any, self),)

    def head(self) -> Head | None:
        """None: there is no file."""
        return None

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray] | None:
        """None: the case is only this image."""
        return None


@dataclass(frozen=True, eq=False)
class FileImage(OneImage):
    """An image file.

    Attributes:
        path: The file.
        root: Folder that its name is relative to.
    """

    path: Path
    root: Path = Path()

    @property
    def name(self) -> str:
        """Path relative to the root, with forward slashes."""
        return relative_name(self.path, self.root)

    def image(self, wanted: int | None = None) -> NDArray:
        """Pixels; see `vimamba.data.pixels.read_pixels`."""
        return read_pixels(self.path, wanted)

    def head(self) -> Head:
        """The header, read without the pixels."""
        return read_head(self.path)

    def size(self) -> tuple[int, int]:
        """Height and width from the file's head."""
        return image_size(self.path)


@dataclass(frozen=True, eq=False)
class ArrayImage(OneImage):
    """An image held in memory.

    Attributes:
        pixels: (H, W) or (H, W, C).
        name: Its name.
    """

    pixels: NDArray
    name: str

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, C)."""
        return as_numbers(self.pixels if self.pixels.ndim == 3 else self.pixels[:, :, None], None)


@dataclass(frozen=True)
class Catalogue:
    """Contents of a data set.

    Attributes:
        splits: Items of "train", "val" and "test", as far as they exist.
        drawn: The split was generated here, not shipped with the data set.
        class_names: In the order of the labels, if they are found with the items.
    """

    splits: dict[str, tuple[Any, ...]]
    drawn: bool
    class_names: tuple[str, ...] = ()


def take(items: Sequence[T], indices: Iterable[Any]) -> tuple[T, ...]:
    """The chosen items, in the order given."""
    return tuple(items[int(index)] for index in indices)


def relative_name(path: Path, root: Path) -> str:
    """Path relative to the root if it is inside, with forward slashes."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
