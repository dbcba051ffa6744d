"""What every classification data set has in common: splits, transforms, loaders, checks."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from vimamba.data.augmentation import (
    DEFAULT_AUGMENTATION,
    INTERPOLATIONS,
    Augmentation,
    Transform,
    eval_transform,
    train_transform,
)
from vimamba.data.dataset import EpochSampler, ImageDataset, start_worker
from vimamba.data.errors import DataError
from vimamba.data.samples import PIXEL_MODES, Samples
from vimamba.data.splits import Division, read_split, split_by_group, split_stratified

# mean and standard deviation of ImageNet's training images, as in torchvision and timm
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Loader = DataLoader[tuple[Tensor, Tensor]]


def default_mean(in_chans: int) -> list[float]:
    """Mean of ImageNet's images, per channel or over the three."""
    return list(IMAGENET_MEAN) if in_chans == 3 else [sum(IMAGENET_MEAN) / 3]


def default_std(in_chans: int) -> list[float]:
    """Standard deviation of ImageNet's images, per channel or over the three."""
    return list(IMAGENET_STD) if in_chans == 3 else [sum(IMAGENET_STD) / 3]


@dataclass(frozen=True)
class Catalogue:
    """What a data set holds.

    Attributes:
        class_names: In the order of the labels.
        multi_label: An image can have any number of classes.
        splits: Images of "train", "val" and "test", as far as they exist.
        drawn: The division was drawn here rather than given with the data.
    """

    class_names: tuple[str, ...]
    multi_label: bool
    splits: dict[str, Samples]
    drawn: bool


class ClassificationData(LightningDataModule):
    """Base of the classification data sets; a subclass only has to `read`.

    Args:
        root: Folder or file that holds the data.
        img_size: Side of the square images the network gets, pixels; 224 if nothing else says so.
        batch_size: Images per step.
        workers: Processes that load images; 0 loads in the main process.
        in_chans: 3 for RGB, 1 for grey.
        mean: Per-channel mean in [0, 1]; ImageNet's by default.
        std: Per-channel standard deviation in [0, 1]; ImageNet's by default.
        interpolation: nearest, bilinear, bicubic, area or lanczos.
        crop_pct: Part of the resized shorter side that evaluation keeps.
        augmentation: Random changes to training images.
        val_fraction: Part of the training images to hold out where there is no val split.
        test_fraction: Part to hold out for a test where nothing is split yet.
        split_csv: Take the division from this file (as a run writes it) instead of drawing one.
        limit: Use at most this many images of each split.
        seed: Start of all random streams.
    """

    def __init__(
        self,
        root: str,
        *,
        img_size: int | None = None,
        batch_size: int = 64,
        workers: int = 2,
        in_chans: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_csv: str | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.img_size = img_size or 224
        self.batch_size = batch_size
        self.workers = workers
        self.in_chans = in_chans
        self.mean = list(mean or default_mean(in_chans))
        self.std = list(std or default_std(in_chans))
        self.interpolation = interpolation
        self.crop_pct = crop_pct or 1.0
        self.augmentation = augmentation
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_csv = Path(split_csv) if split_csv else None
        self.limit = limit
        self.seed = seed
        self.first_epoch = 0
        self.whole: str | None = None
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Fail on values that no data set can have."""
        if self.in_chans not in PIXEL_MODES:
            raise DataError(f"in_chans={self.in_chans} must be one of {sorted(PIXEL_MODES)}")
        if self.interpolation not in INTERPOLATIONS:
            names = sorted(INTERPOLATIONS)
            raise DataError(f"interpolation={self.interpolation!r} must be one of {names}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_chans:
                raise DataError(f"{name}={getattr(self, name)} needs {self.in_chans} values")
        positive = {"img_size": self.img_size, "batch_size": self.batch_size, "limit": self.limit}
        for name, value in positive.items():
            if value is not None and value < 1:
                raise DataError(f"{name}={value} must be at least 1")

    @abstractmethod
    def read(self) -> Catalogue:
        """Find the images and labels, without opening the images."""

    @cached_property
    def catalogue(self) -> Catalogue:
        """The data set, read once and cut down to `limit`."""
        found = self.read()
        splits = {name: samples for name, samples in found.splits.items() if len(samples)}
        if self.limit is not None:
            splits = {name: self._cut(samples, self.limit) for name, samples in splits.items()}
        return Catalogue(found.class_names, found.multi_label, splits, found.drawn)

    def _cut(self, samples: Samples, limit: int) -> Samples:
        """A seeded choice of at most `limit` images."""
        order = np.random.default_rng(self.seed).permutation(len(samples))
        return samples.take(np.sort(order[:limit]))

    def take_whole(self, split: str) -> None:
        """Where a division would be drawn, take all images as one split: to score other data."""
        self.whole = split
        self.__dict__.pop("catalogue", None)

    def divide(
        self, samples: Samples, groups: Sequence[str] | None = None, *, val_only: bool = False
    ) -> tuple[dict[str, Samples], bool]:
        """Divide images that come without splits.

        Args:
            samples: All images.
            groups: Images of one group stay together.
            val_only: A test split exists already.

        Returns:
            The splits, and whether they were drawn rather than read from `split_csv`.
        """
        if self.whole:
            return {} if val_only else {self.whole: samples}, True
        if self.split_csv:
            division: Division = read_split(self.split_csv, samples)
        else:
            fractions = {"val": self.fractions["val"]} if val_only else self.fractions
            if groups is None:
                division = split_stratified(samples.labels, fractions, self.seed)
            else:
                division = split_by_group(samples.labels, groups, fractions, self.seed)
        return {name: samples.take(indices) for name, indices in division.items()}, True

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the labels."""
        return list(self.catalogue.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.catalogue.class_names)

    @property
    def multi_label(self) -> bool:
        """An image can have any number of classes."""
        return self.catalogue.multi_label

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return self.count("train").tolist()

    def count(self, split: str) -> NDArray[np.int64]:
        """Images of each class in a split, (num_classes,)."""
        samples = self.catalogue.splits.get(split)
        if samples is None:
            return np.zeros(self.num_classes, dtype=np.int64)
        if self.multi_label:
            return samples.labels.sum(0).astype(np.int64)
        return np.bincount(samples.labels, minlength=self.num_classes)

    def check(self) -> None:
        """Fail, before any training, on splits or classes that are empty.

        Raises:
            DataError: The text says what is missing and where.
        """
        for split in ("train", "val"):
            if split not in self.catalogue.splits:
                raise DataError(f"root={str(self.root)!r}: there is no image in the {split} split")
        if self.num_classes < (1 if self.multi_label else 2):
            raise DataError(f"root={str(self.root)!r}: one class only, {self.class_names}")
        empty = [self.class_names[i] for i in np.flatnonzero(self.count("train") == 0)]
        if empty and self.limit is None:
            raise DataError(f"root={str(self.root)!r}: no training image of class {empty}")

    def eval_transform(self) -> Transform:
        """The fixed pipeline for evaluation."""
        return eval_transform(
            self.img_size,
            self.mean,
            self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
        )

    def dataset(self, split: str, *, augmented: bool = False) -> ImageDataset:
        """Images of a split, as the network gets them."""
        if split not in self.catalogue.splits:
            have = sorted(self.catalogue.splits)
            raise DataError(f"root={str(self.root)!r} has no {split} split, only {have}")
        transform = self.eval_transform()
        if augmented:
            size, mean, std = self.img_size, self.mean, self.std
            transform = train_transform(self.augmentation, size, mean, std, self.interpolation)
        return ImageDataset(self.catalogue.splits[split], transform, self.in_chans, self.seed)

    def _loader(self, dataset: ImageDataset, sampler: EpochSampler | None = None) -> Loader:
        training = sampler is not None
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            drop_last=training and len(sampler) >= self.batch_size,
            persistent_workers=training and self.workers > 0,
            worker_init_fn=start_worker,
            pin_memory=self.trainer is not None and self.trainer.num_devices > 0 and _has_gpu(),
        )

    def state_dict(self) -> dict[str, int]:
        """Epochs that are finished, for the checkpoint."""
        progress = cast(Any, self.trainer).fit_loop.epoch_progress
        return {"epochs": progress.current.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin with the epoch after those: workers fetch its images before Lightning names it."""
        self.first_epoch = state_dict["epochs"]

    def train_dataloader(self) -> Loader:
        """Augmented training images in a new order every epoch."""
        dataset = self.dataset("train", augmented=True)
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        sampler = EpochSampler(
            len(dataset), self.seed, rank=rank, world_size=world_size, epoch=self.first_epoch
        )
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> Loader:
        """Validation images in order."""
        return self._loader(self.dataset("val"))

    def test_dataloader(self) -> Loader:
        """Test images in order."""
        return self._loader(self.dataset("test"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
