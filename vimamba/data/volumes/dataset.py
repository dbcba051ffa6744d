"""Preprocessed cases: patches in training, whole volumes in evaluation.

A prepared case, resampled and normalized, is stored in a folder as memory-mapped arrays: a patch
reads only its own voxels, and all worker processes share one copy.

Sizes: C channels, d x h x w voxels of a case, p x q x r of a patch.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vimamba.data.listing import stamp
from vimamba.data.loading import stream_seed
from vimamba.data.masked.labels import LabelTable
from vimamba.data.volumes.augmentation import Patch
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.preprocessing import VolumePreprocessing
from vimamba.files import write_folder
from vimamba.labels import IGNORE
from vimamba.sizes import sides_of

# sampled locations per class of a case, as in nnU-Net
PLACES = 10_000
# version in the names of prepared cases: increase it when their contents change
FORM = 2


@dataclass(frozen=True)
class Sampling:
    """How training patches are sampled.

    Attributes:
        patches: Patches of each case per epoch.
        foreground: Fraction of them centered on a foreground voxel, of each class of the case
            equally often.
        first: The first foreground class.
    """

    patches: int
    foreground: float
    first: int


class PreparedCases:
    """Resampled and normalized cases, each prepared on first use.

    Args:
        cases: The cases.
        prepare: From stored voxels to the network's.
        table: From stored masks to classes.
        folder: Folder for the prepared cases.
    """

    def __init__(
        self,
        cases: Sequence[VolumeCase],
        prepare: VolumePreprocessing,
        table: LabelTable,
        folder: Path,
    ) -> None:
        self.cases, self.prepare, self.table, self.folder = cases, prepare, table, folder

    def place(self, case: VolumeCase) -> Path:
        """Folder of a prepared case, named by a hash of everything it depends on."""
        files = [*case.paths, *([case.mask_path] if case.mask_path else [])]
        settings = {**asdict(self.prepare), "img_size": None}  # patches are cut later
        content = [
            *(FORM, [[str(path), *stamp(path)] for path in files], case.align),
            *(settings, self.table.values, self.table.ignore),
        ]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
        return self.folder / key

    def __getitem__(self, index: int) -> tuple[NDArray, NDArray, NDArray]:
        """Image (C, d, h, w), mask (d, h, w) and class locations (n, 4), memory-mapped."""
        case = self.cases[index]
        place = self.place(case)
        if not place.is_dir():
            classes = case.classes(self.table)
            mask = self.prepare.mask(classes, case)
            with write_folder(place) as part:
                np.save(part / "image.npy", self.prepare.volume(case).numpy())
                np.save(part / "mask.npy", mask)
                np.save(part / "places.npy", find_places(mask))
        image, mask, places = (
            np.load(place / f"{name}.npy", mmap_mode="r") for name in ("image", "mask", "places")
        )
        return image, mask, places


def find_places(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Some voxels of every class, (n, 4): class and position."""
    rows = []
    for label in np.unique(mask):
        if label == IGNORE:
            continue
        found = np.flatnonzero(mask == label)
        if len(found) > PLACES:
            found = np.random.default_rng(len(found)).choice(found, PLACES, replace=False)
        where = np.stack(np.unravel_index(found, mask.shape), axis=1)
        rows.append(np.concatenate([np.full((len(found), 1), label), where], axis=1))
    return np.concatenate(rows or [np.zeros((0, 4))]).astype(np.int32)


class PatchDataset(Dataset[Any]):
    """Random patches; each is a function of (seed, epoch, index).

    Args:
        prepared: The cases.
        sampling: How patches are sampled.
        transform: Random augmentation, from a patch and a seed; None for none.
        seed: Seed of all random streams.
    """

    def __init__(
        self,
        prepared: PreparedCases,
        sampling: Sampling,
        transform: Callable[[Patch, int], Patch] | None,
        seed: int,
    ) -> None:
        self.prepared, self.sampling = prepared, sampling
        self.transform, self.seed = transform, seed
        self.size = sides_of(prepared.prepare.img_size, 3)

    def __len__(self) -> int:
        """Patches of an epoch."""
        return len(self.prepared.cases) * self.sampling.patches

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(C, p, q, r) float32 and (p, q, r) uint8, `IGNORE` outside the volume."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, mask, places = self.prepared[index % len(self.prepared.cases)]
        seed = stream_seed(self.seed, epoch, index)
        starts = self._choose(mask.shape, places, np.random.default_rng(seed))
        patch = cut(image, starts, self.size, 0), cut(mask, starts, self.size, IGNORE)
        if self.transform is not None:
            patch = self.transform(patch, seed)
        return torch.from_numpy(patch[0]), torch.from_numpy(patch[1])

    def _choose(
        self, shape: Sequence[int], places: NDArray, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Start of a patch along each axis; negative if the volume is smaller."""
        ends = [max(n - side, 0) for n, side in zip(shape, self.size, strict=True)]
        lacking = [max(side - n, 0) // 2 for n, side in zip(shape, self.size, strict=True)]
        starts = [int(rng.integers(end + 1)) for end in ends]
        wanted = places[:, 0] >= self.sampling.first
        if rng.random() < self.sampling.foreground and wanted.any():
            there = np.asarray(places[wanted])
            label = rng.choice(np.unique(there[:, 0]))
            middle = rng.choice(there[there[:, 0] == label])[1:]
            starts = [
                int(np.clip(m - side // 2, 0, end))
                for m, side, end in zip(middle, self.size, ends, strict=True)
            ]
        return tuple(start - less for start, less in zip(starts, lacking, strict=True))


def cut(values: NDArray, starts: Sequence[int], size: Sequence[int], outside: int) -> NDArray:
    """Crop a box of the last three axes; voxels outside the array are filled."""
    shape = values.shape[-3:]
    inner = tuple(
        slice(max(start, 0), min(start + side, n))
        for start, side, n in zip(starts, size, shape, strict=True)
    )
    found = np.asarray(values[(..., *inner)])
    room = [
        (part.start - start, start + side - part.stop)
        for start, side, part in zip(starts, size, inner, strict=True)
    ]
    if any(map(any, room)):
        first = [(0, 0)] * (values.ndim - 3)
        return np.pad(found, [*first, *room], constant_values=outside)
    return found.copy()


class WholeDataset(Dataset[Any]):
    """Whole cases at the network's spacing, with the masks as stored.

    Args:
        prepared: The cases.
    """

    def __init__(self, prepared: PreparedCases) -> None:
        self.prepared = prepared

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.prepared.cases)

    def __getitem__(
        self, key: int | tuple[int, int]
    ) -> tuple[Tensor, Tensor, str, tuple[float, ...]]:
        """(C, d, h, w) float32, (D, H, W) uint8, name and spacing."""
        index = key[1] if isinstance(key, tuple) else key
        case = self.prepared.cases[index]
        image, _, _ = self.prepared[index]
        mask = np.ascontiguousarray(case.classes(self.prepared.table))
        return torch.from_numpy(image.copy()), torch.from_numpy(mask), case.name, case.spacing
