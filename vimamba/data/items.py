"""What a data set is a list of: images with a target, read when they are asked for.

A kind of data adds its target to an item: a label, a mask, another image. Items that hold one image
are `StoredImage`s themselves; those of several, such as pairs, name them in `images`.

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
    """One image, read when asked for."""

    @property
    def name(self) -> str:
        """What to call the image in a table or an error."""
        ...

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, C) uint8, uint16, or float32, with NaN where nothing is known.

        Args:
            wanted: How many bands are looked for; see `vimamba.data.pixels.read_pixels`.
        """
        ...

    def head(self) -> Head | None:
        """What its file says of it; None where it has no file of its own."""
        ...

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray] | None:
        """Percentiles of the values of the case, for each band, (C,) each.

        None where the case is this image alone.
        """
        ...


class Item(Protocol):
    """One or more images and a target."""

    @property
    def name(self) -> str:
        """What to call it in a table, an error or split.csv."""
        ...

    @property
    def group(self) -> str:
        """Items of one group, such as a patient, are never in two splits; "" stands alone."""
        ...

    def images(self) -> Sequence[StoredImage]:
        """Its images, of which the network's input is made."""
        ...

    def target_text(self, class_names: Sequence[str]) -> str:
        """The target in words: the classes, or the name of a file."""
        ...


class OneImage:
    """What items that are one image have in common; each says more where it knows more."""

    def images(self) -> Sequence[StoredImage]:
        """The image itself."""
        return (cast(Any, self),)

    def head(self) -> Head | None:
        """There is no file."""
        return None

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray] | None:
        """The image is a case by itself."""
        return None


@dataclass(frozen=True, eq=False)
class FileImage(OneImage):
    """An image file.

    Attributes:
        path: The file.
        root: Folder that its name is given relative to.
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
        """Read without the pixels."""
        return read_head(self.path)

    def size(self) -> tuple[int, int]:
        """Height and width from the file's head."""
        return image_size(self.path)


@dataclass(frozen=True, eq=False)
class ArrayImage(OneImage):
    """An image held in memory.

    Attributes:
        pixels: (H, W) or (H, W, C).
        name: What to call it.
    """

    pixels: NDArray
    name: str

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, C)."""
        return as_numbers(self.pixels if self.pixels.ndim == 3 else self.pixels[:, :, None], None)


@dataclass(frozen=True)
class Catalogue:
    """What a data set holds.

    Attributes:
        splits: Items of "train", "val" and "test", as far as they exist.
        drawn: The split was generated here, not shipped with the data set.
        class_names: In the order of the labels, where finding the items finds them.
    """

    splits: dict[str, tuple[Any, ...]]
    drawn: bool
    class_names: tuple[str, ...] = ()


def take(items: Sequence[T], indices: Iterable[Any]) -> tuple[T, ...]:
    """The chosen items, in the order given."""
    return tuple(items[int(index)] for index in indices)


def relative_name(path: Path, root: Path) -> str:
    """Path relative to the root where it lies below it, with forward slashes."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
