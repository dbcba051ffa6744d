"""Synapse multi-organ CT in the form of TransUNet: slices for training, volumes for test.

`train_npz/case0005_slice000.npz` and `test_vol_h5/case0001.npy.h5`, each with `image` in [0, 1] and
`label` from 0 to 8. `lists/lists_Synapse/train.txt`, if it exists, selects the slices. The val
split is taken from the training cases, so the test volumes stay unseen.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue, OneImage
from vimamba.data.listing import natural_order
from vimamba.data.lists import read_lines
from vimamba.data.masked.labels import Labels, whole_numbers
from vimamba.data.masked.segmentation import SegmentationData

ORGANS = Labels(
    classes=[
        "background", "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas",
        "spleen", "stomach",
    ]
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, NDArray]:
    """`image` and `label` of a slice file.

    Raises:
        DataError: The file cannot be read or lacks one of them; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image", "label")}
    except FileNotFoundError:
        raise DataError(f"slice {path} does not exist") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"slice {path} cannot be read: {error}") from None
    if arrays["image"].ndim != 2:
        raise DataError(f"slice {path}: image has the shape {arrays['image'].shape}, expected 2-D")
    return arrays


@lru_cache(maxsize=2)
def read_volume(path: Path) -> dict[str, NDArray]:
    """`image` and `label` of a volume file, (slices, rows, columns) each."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            arrays = {name: np.asarray(file[name]) for name in ("image", "label")}
    except (OSError, KeyError) as error:
        raise DataError(f"volume {path} cannot be read: {error}") from None
    if arrays["image"].ndim != 3:
        raise DataError(f"volume {path}: image has the shape {arrays['image'].shape}, expected 3-D")
    return arrays


@dataclass(frozen=True)
class ArraySlice(OneImage):
    """A slice in a file of arrays.

    Attributes:
        path: .npz of one slice, or .h5 of a volume.
        place: Index of the slice in the volume; None for a file of one slice.
        case: The case of the slice, for scores and for splits.
    """

    path: Path
    place: int | None
    case: str
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def name(self) -> str:
        """Name of the file and place in it."""
        return self.path.name if self.place is None else f"{self.path.name}[{self.place}]"

    @property
    def mask_name(self) -> str:
        """Name of the file and place in it."""
        return self.name

    @property
    def group(self) -> str:
        """The case."""
        return self.case

    def _array(self, name: str) -> NDArray:
        if self.place is None:
            return read_arrays(self.path)[name]
        return read_volume(self.path)[name][self.place]

    def image(self, wanted: int | None = None) -> NDArray:
        """(H, W, 1) float32."""
        return self._array("image").astype(np.float32)[:, :, None]

    def mask(self) -> NDArray:
        """(H, W) integers."""
        return whole_numbers(self._array("label"), self.mask_name)

    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self._array("image").shape
        return height, width

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the mask."""
        return self.mask_name


class Synapse(SegmentationData):
    """Synapse multi-organ CT; see the module for the layout.

    Args:
        root: Folder with `train_npz` and `test_vol_h5`.
        labels: The organs' names by default.
        in_chans: Channels; one for CT.
        **kwargs: Arguments of `SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        *,
        labels: Labels = ORGANS,
        in_chans: int = 1,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, labels=labels, in_chans=in_chans, **kwargs)

    def read(self) -> Catalogue:
        """Find the slices and volumes."""
        splits: dict[str, tuple[ArraySlice, ...]] = {}
        slices = self._training_slices()
        if slices:
            splits["train"] = slices
        volumes = sorted(
            (self.root / "test_vol_h5").glob("[!.]*.h5"), key=lambda path: natural_order(path.name)
        )
        if volumes:
            splits["test"] = tuple(s for path in volumes for s in volume_slices(path))
        if not splits:
            raise DataError(f"root={str(self.root)!r} has neither train_npz nor test_vol_h5")
        return self.with_val(splits)

    def _training_slices(self) -> tuple[ArraySlice, ...]:
        folder, listed = (
            self.root / "train_npz",
            self.root / "lists" / "lists_Synapse" / "train.txt",
        )
        if listed.is_file():
            paths = [folder / f"{name}.npz" for name in read_lines(listed)]
        else:
            paths = sorted(folder.glob("[!.]*.npz"), key=lambda path: natural_order(path.name))
        return tuple(ArraySlice(path, None, path.stem.split("_slice")[0]) for path in paths)


def volume_slices(path: Path) -> list[ArraySlice]:
    """All slices of a volume file."""
    case = path.name.split(".")[0]
    count = len(read_volume(path)["image"])
    return [ArraySlice(path, place, case) for place in range(count)]
