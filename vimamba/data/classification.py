"""What every classification data set has in common: splits, transforms, loaders, checks."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.augmentation import (
    DEFAULT_AUGMENTATION,
    INTERPOLATIONS,
    Augmentation,
    Transform,
    eval_transform,
    train_transform,
)
from vimamba.data.dataset import ImageDataset
from vimamba.data.errors import DataError
from vimamba.data.image_data import (
    ImageData,
    check_channels,
    check_positive,
    default_mean,
    default_std,
    restore_settings,
)
from vimamba.data.listing import composed, look_alikes
from vimamba.data.samples import PIXEL_MODES, Samples


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


class ClassificationData(ImageData):
    """Base of the classification data sets; a subclass only has to `read`.

    Args:
        root: Folder or file that holds the data.
        classes: Class names in the order wanted; others are errors. What is found by default, in
            natural order.
        img_size: Side of the square images the network gets, pixels; 224 if nothing else says so.
        in_chans: 3 for RGB, 1 for grey.
        mean: Per-channel mean in [0, 1]; ImageNet's by default.
        std: Per-channel standard deviation in [0, 1]; ImageNet's by default.
        interpolation: nearest, bilinear, bicubic, area or lanczos.
        crop_pct: Part of the resized shorter side that evaluation keeps.
        augmentation: Random changes to training images.
        **kwargs: Arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str,
        *,
        classes: list[str] | None = None,
        img_size: int | None = None,
        in_chans: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.classes = None if classes is None else [composed(name) for name in classes]
        self.img_size = img_size or 224
        self.in_chans = in_chans
        self.mean = list(mean or default_mean(in_chans))
        self.std = list(std or default_std(in_chans))
        self.interpolation = interpolation
        self.crop_pct = crop_pct or 1.0
        self.augmentation = restore_settings(Augmentation, augmentation)
        self._check_arguments(img_size)

    def _check_arguments(self, img_size: int | None) -> None:
        """Fail on values that no data set can have."""
        if self.in_chans not in PIXEL_MODES:
            raise DataError(f"in_chans={self.in_chans} must be one of {sorted(PIXEL_MODES)}")
        if self.interpolation not in INTERPOLATIONS:
            names = sorted(INTERPOLATIONS)
            raise DataError(f"interpolation={self.interpolation!r} must be one of {names}")
        check_channels(self.mean, self.std, self.in_chans)
        check_positive(img_size=img_size)
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise DataError(f"classes={self.classes} names one class twice")

    @abstractmethod
    def read(self) -> Catalogue:
        """Find the images and labels, without opening the images."""

    def strata(self, samples: Samples) -> NDArray:
        """The labels, in whose proportions images are divided."""
        return samples.labels

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the labels."""
        return list(self.catalogue.class_names)

    def settled(self) -> dict[str, Any]:
        """The classes in their order, so that later commands keep it whatever they find."""
        return {"classes": self.class_names}

    def notes(self) -> list[str]:
        """What is odd about the data; names of classes that are easily taken for one another."""
        alike = [
            f"classes {' and '.join(map(repr, names))} differ only by case or leading zeros"
            for names in look_alikes(self.class_names)
        ]
        return [*super().notes(), *alike]

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
        self.check_splits()
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
        samples = self.samples(split)
        transform = self.eval_transform()
        if augmented:
            size, mean, std = self.img_size, self.mean, self.std
            transform = train_transform(self.augmentation, size, mean, std, self.interpolation)
        return ImageDataset(samples, transform, self.in_chans, self.seed)
