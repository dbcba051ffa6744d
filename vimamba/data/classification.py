"""What every classification data set has in common: splits, transforms, loaders, checks."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.augmentation import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    train_transform,
)
from vimamba.data.dataset import ImageDataset
from vimamba.data.errors import DataError
from vimamba.data.image_data import ImageData, restore_settings
from vimamba.data.listing import composed, look_alikes
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.samples import Samples
from vimamba.sizes import ImageSize, read_size


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
        img_size: Side of the images the network gets, or height and width as 96x160 or [96, 160],
            pixels; 224 if nothing else says so.
        interpolation: nearest, bilinear, bicubic, area (timm's box), hamming or lanczos; with an
            antialiasing filter where images shrink, as in timm.
        crop_pct: Part of the resized shorter side that evaluation keeps.
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
        self.crop_pct = crop_pct or 1.0
        self.augmentation = restore_settings(Augmentation, augmentation)
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct={crop_pct} must lie in (0, 1]")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise DataError(f"classes={self.classes} names one class twice")
        self.planned = Preprocessing(
            img_size=self.img_size,
            in_chans=self.in_chans,
            bands=self.bands,
            fit="crop",
            scale_to=None,
            interpolation=interpolation,
            intensity=self.intensity,
            mean=self.given_mean,
            std=self.given_std,
            crop_pct=self.crop_pct,
        )

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
        """The classes in their order too, so that later commands keep it whatever they find."""
        return {**super().settled(), "classes": self.class_names}

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

    def dataset(self, split: str, *, augmented: bool = False) -> ImageDataset:
        """Images of a split, as the network gets them."""
        prepare, transform = self.preprocessing, None
        if augmented:
            transform = train_transform(
                self.augmentation,
                self.img_size,
                *prepare.normalization,
                self.interpolation,
                in_chans=self.in_chans,
            )
        return ImageDataset(self.samples(split), prepare, transform, self.seed)
