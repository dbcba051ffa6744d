"""Base class of classification data sets: splits, transforms, loaders, checks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vimamba.data.augmentation import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    Transform,
    train_transform,
)
from vimamba.data.base import ImageData, restore_settings
from vimamba.data.errors import DataError
from vimamba.data.labelled.items import LabelledImage, labels_of
from vimamba.data.listing import composed, look_alikes
from vimamba.data.loading import stream_seed
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.resizing import check_interpolation
from vimamba.sizes import ImageSize, read_size


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Preprocessed images and labels.

    Args:
        items: The images and their labels.
        prepare: From stored pixels to a tensor.
        transform: Random augmentation, from pixels and a seed to a tensor; None for evaluation.
        seed: Seed of all random streams.
    """

    def __init__(
        self,
        items: Sequence[LabelledImage],
        prepare: Preprocessing,
        transform: Transform | None,
        seed: int,
    ) -> None:
        self.items = items
        self.prepare = prepare
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(C, height, width) float32 and a label, for an index or an (epoch, index) pair."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item = self.items[index]
        label = torch.as_tensor(item.label, dtype=None, device="cpu")
        if self.transform is None:
            return self.prepare.image(item), label
        seed = stream_seed(self.seed, epoch, index)
        return self.transform(self.prepare.values(item), seed), label


class ClassificationData(ImageData):
    """Base of the classification data sets; a subclass only has to `read`.

    Args:
        root: Folder or file with the data.
        classes: Class names in the requested order; other classes are errors. By default the
            classes found, in natural order.
        img_size: Side of the network's input images, or height and width as 96x160 or [96, 160],
            pixels; 224 by default.
        interpolation: nearest, bilinear, bicubic, area (timm's box), hamming or lanczos; with
            antialiasing when shrinking, as in timm.
        crop_pct: Fraction of the resized shorter side that evaluation keeps.
        augmentation: Random changes to training images.
        **kwargs: Arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str,
        *,
        classes: list[str] | None = None,
        img_size: ImageSize | None = None,
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.classes = None if classes is None else [composed(name) for name in classes]
        self.img_size = read_size(224 if img_size is None else img_size)
        self.interpolation = interpolation
        self.given_crop, self.crop_pct = crop_pct, crop_pct or 1.0
        self.augmentation = restore_settings(Augmentation, augmentation)
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct={crop_pct} must lie in (0, 1]")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise DataError(f"classes={self.classes} lists a class twice")
        check_interpolation(interpolation)

    def plan(self) -> Preprocessing:
        """Resize an image to cover the network's input and crop the center."""
        return Preprocessing(
            img_size=self.img_size,
            in_chans=self.in_chans,
            bands=self.bands,
            fit="crop",
            scale_to=None,
            interpolation=self.interpolation,
            intensity=self.intensity,
            mean=self.given_mean,
            std=self.given_std,
            crop_pct=self.crop_pct,
        )

    def take_published(self, mean: Sequence[float], std: Sequence[float], crop_pct: float) -> None:
        """Prepare images as published weights expect it; see `ImageData.take_published`."""
        if self.given_crop is None and len(mean) == self.in_chans:
            self.crop_pct = crop_pct
        super().take_published(mean, std, crop_pct)

    def strata(self, items: Sequence[LabelledImage]) -> NDArray:
        """The labels, by which splits are stratified."""
        return labels_of(items)

    def inferred_settings(self) -> dict[str, Any]:
        """Also the order of the classes, so that later commands keep it."""
        return {
            **super().inferred_settings(),
            "crop_pct": self.crop_pct,
            "classes": self.class_names,
        }

    def notes(self) -> list[str]:
        """Oddities of the data, such as class names that are easily confused."""
        alike = [
            f"classes {' and '.join(map(repr, names))} differ only by case or leading zeros"
            for names in look_alikes(self.class_names)
        ]
        return [*super().notes(), *alike]

    @property
    def multi_label(self) -> bool:
        """Whether an image can have any number of classes."""
        first = next((items[0] for items in self.catalogue.splits.values()), None)
        return first is not None and np.ndim(first.label) > 0

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return self.count("train").tolist()

    def count(self, split: str) -> NDArray[np.int64]:
        """Images of each class in a split, (num_classes,)."""
        items = self.catalogue.splits.get(split)
        if items is None:
            return np.zeros(self.num_classes, dtype=np.int64)
        labels = labels_of(items)
        if self.multi_label:
            return labels.sum(0).astype(np.int64)
        return np.bincount(labels, minlength=self.num_classes)

    def check(self) -> None:
        """Fail, before any training, on splits or classes that are empty.

        Raises:
            DataError: The message says what is missing and where.
        """
        self.check_splits()
        if self.num_classes < (1 if self.multi_label else 2):
            raise DataError(f"root={str(self.root)!r}: only one class, {self.class_names}")
        empty = [self.class_names[i] for i in np.flatnonzero(self.count("train") == 0)]
        if empty and self.limit is None:
            raise DataError(f"root={str(self.root)!r}: no training image of class {empty}")

    def check_division(self) -> None:
        """As `check`."""
        self.check()

    def dataset(self, split: str, *, augmented: bool = False) -> ImageDataset:
        """Preprocessed images of a split."""
        prepare, transform = self.preprocessing, None
        if augmented:
            transform = train_transform(
                self.augmentation,
                self.img_size,
                *prepare.normalization,
                self.interpolation,
                in_chans=self.in_chans,
            )
        return ImageDataset(self.items(split), prepare, transform, self.seed)
