"""Images with masks: what one is, whatever it is stored in.

Sizes: H x W pixels, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from numpy.typing import NDArray

from vimamba.data.formats import open_image
from vimamba.data.geometry import check_grids, raster_grid, resample
from vimamba.data.items import FileImage, Item, StoredImage, relative_name
from vimamba.data.masked.labels import mask_values
from vimamba.data.pixels import reading


class MaskedImage(StoredImage, Item, Protocol):
    """One image and its mask, read when asked for."""

    @property
    def mask_name(self) -> str:
        """What to call the mask."""
        ...

    @property
    def case(self) -> str:
        """Images of one case, such as the slices of a volume, are scored together."""
        ...

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbors of a case along (rows, columns) or (slices, rows, columns).

        Pixels where nothing is known, else millimeters.
        """
        ...

    def mask(self) -> NDArray:
        """(H, W) integers or (H, W, 3) colors, as stored.

        Raises:
            DataError: It cannot be read, or does not lie where the image lies.
        """
        ...

    def size(self) -> tuple[int, int]:
        """Height and width of the image, without reading all of it where that is possible."""
        ...


@dataclass(frozen=True)
class MaskedFile(FileImage):
    """An image file and a mask file of the same size.

    Attributes:
        path: The image.
        root: Names are given relative to it.
        mask_path: The mask.
        group: As in `Item`.
        align: A GeoTIFF mask that lies elsewhere than its image is resampled onto it.
    """

    mask_path: Path = Path()
    group: str = ""
    spacing: tuple[float, ...] = (1.0, 1.0)
    align: bool = False

    @property
    def mask_name(self) -> str:
        """Path of the mask relative to the root."""
        return relative_name(self.mask_path, self.root)

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the mask."""
        return self.mask_name

    @property
    def case(self) -> str:
        """The image alone."""
        return self.name

    def mask(self) -> NDArray:
        """(H, W) integers or (H, W, 3) colors, as stored."""
        stored = read_mask(self.mask_path)
        here, there = raster_grid(self.path), raster_grid(self.mask_path)
        if here is None or there is None or here.agrees(there):
            return stored
        check_grids(here, there, self.path, self.mask_path, align=self.align)
        return resample(stored, there, here, nearest=True, outside=0)


def read_mask(path: Path) -> NDArray:
    """Values of a mask file as stored: palette indices, integers, or colors.

    JPEG blurs values, so its masks hold 0 and 255 only and are cut at half of the range.

    Returns:
        (H, W) integers, or (H, W, 3) uint8 if the file is in color.

    Raises:
        DataError: The file is missing or damaged, or it cannot be told what its pixels stand for;
            the text names it.
    """
    with reading(path, "mask"), open_image(path) as image:
        return mask_values(image.stored(), str(path), blurred=image.blurring)
