"""Base class of registration data sets: pairs, checks, and conversion to tensors.

Sizes: C channels, n axes (2 or 3), *grid the axes of an image.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vimamba.data.base import ImageData, check_positive
from vimamba.data.errors import DataError
from vimamba.data.loading import stream_seed
from vimamba.data.paired.cases import (
    Case,
    Pair,
    check_places,
    is_volume,
    read_labels,
    read_values,
    to_unit,
)
from vimamba.data.preprocessing import DEFAULT_INTENSITY, Preprocessing

# label values listed in an error
MOST_NAMED = 8


class PairTensors(NamedTuple):
    """A preprocessed pair.

    Attributes:
        images: (2, C, *grid) float32 in [0, 1], the moving image and the fixed one.
        labels: (2, *grid) int64, 0 for no class, i + 1 for the i-th; (2, 0) without labels.
        spacing: (n,) float32, spacing of the fixed image in millimeters or pixels.
        name: Name of the pair.
    """

    images: Tensor
    labels: Tensor
    spacing: Tensor
    name: str


class Pairs(Protocol):
    """Pairs by index, in an epoch."""

    def __len__(self) -> int:
        """Number of pairs of an epoch."""
        ...

    def pair(self, epoch: int, index: int) -> Pair:
        """One of them."""
        ...


@dataclass(frozen=True)
class ListedPairs:
    """The same pairs in every epoch."""

    pairs: Sequence[Pair]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def pair(self, epoch: int, index: int) -> Pair:
        """One of them."""
        return self.pairs[index]


@dataclass(frozen=True)
class DrawnPairs:
    """In every epoch each case is the moving one once, with a randomly drawn fixed one.

    Attributes:
        cases: Two or more.
        seed: Determines the draw, together with epoch and index.
    """

    cases: Sequence[Case]
    seed: int

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    def pair(self, epoch: int, index: int) -> Pair:
        """The pair whose moving case has this index."""
        step = np.random.default_rng(stream_seed(self.seed, epoch, index))
        other = (index + int(step.integers(1, len(self.cases)))) % len(self.cases)
        return Pair(self.cases[index], self.cases[other])


class PairDataset(Dataset[PairTensors]):
    """Pairs as tensors.

    Args:
        pairs: The pairs.
        percentiles: Percentiles of a volume that become 0 and 1.
        label_values: Values of the classes; None omits labels.
        in_chans: Channels of either image.
        align: Resample volumes on another grid onto the fixed one's.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        percentiles: Sequence[float],
        label_values: Sequence[int] | None,
        in_chans: int,
        align: bool,
    ) -> None:
        self.pairs = pairs
        self.percentiles = percentiles
        self.label_values = label_values
        self.in_chans = in_chans
        self.align = align

    def __len__(self) -> int:
        """Number of pairs of an epoch."""
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> PairTensors:
        """One pair, of epoch 0 if no epoch is given."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.tensors(self.pairs.pair(epoch, index))

    def tensors(self, pair: Pair) -> PairTensors:
        """A pair as tensors.

        Raises:
            DataError: A file cannot be read, or does not fit; the message names it.
        """
        for case in pair.cases:
            check_places(pair.fixed.path, case.path, align=self.align)
        onto = pair.fixed.path if is_volume(pair.fixed.path) else None
        images = np.stack([self._image(case, onto) for case in pair.cases])
        if self.label_values is None:
            labels = np.zeros((2, 0), dtype=np.int64)
        else:
            labels = np.stack([self._labels(case, onto) for case in pair.cases])
        spacing = torch.tensor(pair.fixed.grid.spacing, dtype=torch.float32, device="cpu")
        return PairTensors(torch.from_numpy(images), torch.from_numpy(labels), spacing, pair.name)

    def _image(self, case: Case, onto: Path | None) -> NDArray[np.float32]:
        values = read_values(case.path, onto)
        if len(values) != self.in_chans:
            raise DataError(
                f"{case.path} has {len(values)} channels, expected in_chans={self.in_chans}"
            )
        return to_unit(values, self.percentiles)

    def _labels(self, case: Case, onto: Path | None) -> NDArray[np.int64]:
        assert case.label_path is not None
        check_places(case.path, case.label_path, align=self.align)
        return class_indices(read_labels(case.label_path, onto), self.label_values or ())


def class_indices(stored: NDArray[np.int64], values: Sequence[int]) -> NDArray[np.int64]:
    """Index of the value in each cell, from 1; 0 for any other value."""
    found = np.zeros_like(stored)
    for index, value in enumerate(values, start=1):
        found[stored == value] = index
    return found


class RegistrationData(ImageData):
    """Base of data sets of pairs; a subclass defines the pairs.

    Both images of a pair share one grid, and intensities are scaled to [0, 1] in each volume
    separately. Labels, which either all cases or none have, are for the Dice loss and the scores.

    Args:
        root: Folder or file with the data.
        in_chans: Channels of either image; those of the first by default.
        percentiles: Percentiles of a volume's values that become 0 and 1; values beyond are
            clipped.
        label_values: Label values to use; by default all except 0.
        class_names: Their names; the values by default.
        align: Resample volumes on another grid onto the fixed one's.
        scored_pairs: At most this many pairs of a split are scored, always the same ones.
        batch_size: Pairs per step, of each process if there are several.
        **kwargs: Arguments of `ImageData`, except those that normalize images.
    """

    unit: ClassVar[str] = "cases"
    # arguments saved with a run: pairs are not normalized by a mean
    settles = ("in_chans",)

    def __init__(
        self,
        root: str,
        *,
        in_chans: int | None = None,
        percentiles: tuple[float, float] = (0.0, 100.0),
        label_values: list[int] | None = None,
        class_names: list[str] | None = None,
        align: bool = False,
        scored_pairs: int = 50,
        batch_size: int = 1,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, in_chans=in_chans, batch_size=batch_size, **kwargs)
        normalizing: dict[str, Any] = {
            "bands": self.bands,
            "intensity": None if self.intensity == DEFAULT_INTENSITY else self.intensity,
            "mean": self.given_mean,
            "std": self.given_std,
        }
        for name, value in normalizing.items():
            if value is not None:
                raise DataError(
                    f"{name}={value!r} is not for pairs: each image becomes 0 to 1 by itself; see "
                    "percentiles"
                )
        check_positive(scored_pairs=scored_pairs)
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise DataError(f"percentiles={tuple(percentiles)} must rise within 0 to 100")
        if label_values is not None and len(set(label_values)) != len(label_values):
            raise DataError(f"label_values={label_values} names a value twice")
        self.percentiles = tuple(percentiles)
        self.given_values, self.given_names = label_values, class_names
        self.align = align
        self.scored_pairs = scored_pairs

    @abstractmethod
    def training_pairs(self) -> Pairs:
        """Pairs of the train split in an epoch."""

    @abstractmethod
    def pairs_to_score(self, split: str) -> Sequence[Pair]:
        """All pairs of a split, or a fixed choice of them."""

    def plan(self) -> Preprocessing:
        """Not available for pairs.

        Raises:
            DataError: Always: each volume is scaled separately.
        """
        raise DataError("pairs of images are scaled one by one; see data.percentiles")

    def cases(self, split: str) -> list[Case]:
        """Every case of a split once, in order."""
        found: dict[Path, Case] = {}
        for pair in self.all_pairs(split):
            for case in pair.cases:
                found.setdefault(case.path.resolve(), case)
        return list(found.values())

    @abstractmethod
    def all_pairs(self, split: str) -> Sequence[Pair]:
        """Pairs that together contain every case of a split and its targets."""

    @cached_property
    def every_case(self) -> list[Case]:
        """Cases of all splits.

        Raises:
            DataError: There is none.
        """
        found = {
            case.path.resolve(): case
            for split in self.catalogue.splits
            for case in self.cases(split)
        }
        if not found:
            raise DataError(f"root={str(self.root)!r} does not have two images to register")
        return list(found.values())

    @cached_property
    def in_chans(self) -> int:
        """Channels of either image."""
        return self.given_chans or len(read_values(self.every_case[0].path))

    @cached_property
    def dims(self) -> int:
        """Number of axes: 2 for images, 3 for volumes."""
        return len(self.every_case[0].grid.shape)

    @cached_property
    def label_voxels(self) -> dict[int, int]:
        """Number of cells with each label value over all cases; empty without labels.

        Raises:
            DataError: Some cases have labels and some have none, or labels cannot be read.
        """
        without = [case for case in self.every_case if case.label_path is None]
        if len(without) == len(self.every_case):
            return {}
        if without:
            raise DataError(f"{len(without)} cases have no labels, such as {without[0].path}")
        found: Counter[int] = Counter()
        for case in self.every_case:
            assert case.label_path is not None
            values, counts = np.unique(read_labels(case.label_path), return_counts=True)
            if not set(values.tolist()) - {0}:
                raise DataError(f"labels {case.label_path} hold nothing but 0")
            found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        return dict(sorted(found.items()))

    @cached_property
    def label_values(self) -> list[int]:
        """Values of the classes in the labels; empty without labels."""
        if self.given_values is not None:
            return self.given_values
        return [value for value in self.label_voxels if value != 0]

    @property
    def class_names(self) -> list[str]:
        """Names in the order of `label_values`."""
        names = self.given_names or [str(value) for value in self.label_values]
        if len(names) != len(self.label_values):
            raise DataError(f"class_names={names} must be as many as {self.label_values}")
        return names

    def inferred_settings(self) -> dict[str, Any]:
        """Settings inferred from the data, by dotted names, saved with the run."""
        return {
            "in_chans": self.in_chans,
            "label_values": self.label_values,
            "class_names": self.class_names,
        }

    def check_division(self) -> None:
        """Fail on a split without a pair.

        Raises:
            DataError: The text names it.
        """
        self.check_splits()
        way = "set test_fraction 0" if self.fold is None else "draw fewer folds"
        for split in self.catalogue.splits:
            if not self.pairs_to_score(split):
                raise DataError(
                    f"root={str(self.root)!r}: the {split} split has "
                    f"{len(self.catalogue.splits[split])} cases, too few for a pair; add cases, "
                    f"name an atlas, or {way}"
                )

    def check(self) -> None:
        """Fail, before any training, on cases that cannot be read or do not fit together.

        Raises:
            DataError: The message says what is wrong and where.
        """
        self.check_division()
        missing = [v for v in self.label_values if v not in self.label_voxels]
        if missing and (self.limit is None or not self.label_voxels):
            raise DataError(
                f"label_values={missing[:MOST_NAMED]} do not occur in the labels of {self.root}"
            )
        reader = self.reader(ListedPairs(()))
        for split in self.catalogue.splits:
            shapes: dict[tuple[int, ...], str] = {}
            for pair in self.all_pairs(split):
                found = reader.tensors(pair)
                shape = tuple(found.images.shape[2:])
                if len(shape) != self.dims or min(shape) < 2:
                    raise DataError(
                        f"{pair.fixed.path} has the shape {shape}; expected {self.dims} axes of 2 "
                        "or more, like the first case"
                    )
                shapes[shape] = str(pair.fixed.path)
            if len(shapes) > 1 and self.batch_size > 1:
                raise DataError(
                    f"{' and '.join(list(shapes.values())[:2])} differ in size, so they cannot be "
                    f"batched: batch_size={self.batch_size} must be 1"
                )

    def reader(self, pairs: Pairs) -> PairDataset:
        """Some pairs as tensors."""
        return PairDataset(
            pairs,
            percentiles=self.percentiles,
            label_values=self.label_values or None,
            in_chans=self.in_chans,
            align=self.align,
        )

    def dataset(self, split: str, *, augmented: bool = False) -> PairDataset:
        """Pairs of a split: training pairs if `augmented`, else those to score."""
        if augmented:
            return self.reader(self.training_pairs())
        return self.reader(ListedPairs(self.pairs_to_score(split)))

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Pairs to score in order; each of several processes scores all of them."""
        return self._eval_loader(split, whole=True)
