"""What every segmentation data set has in common: labels, preprocessing, checks, loaders."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vimamba.data.dataset import stream_seed
from vimamba.data.errors import DataError
from vimamba.data.image_data import ImageData, check_positive
from vimamba.data.labels import DEFAULT_LABELS, Labels, LabelTable, settle_labels
from vimamba.data.mask_survey import Survey, survey_masks, wrong_size
from vimamba.data.masked import MaskedCatalogue, MaskedSamples
from vimamba.data.paired_augmentation import (
    PRESETS,
    Fit,
    PairedAugmentation,
    PairTransform,
    Preset,
    train_pair_transform,
)
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.splits import SPLITS, Division, split_fold

# image, mask at its own size, case, spacing
EvalItem = tuple[Tensor, Tensor, str, tuple[float, ...]]


class MaskedDataset(Dataset[Any]):
    """Images with masks, as the network and the scores get them.

    Args:
        samples: The images.
        prepare: From stored pixels to a tensor.
        table: From stored masks to classes.
        transform: Random changes of image and mask; None for evaluation, which keeps the mask's
            own size.
        seed: Start of all random streams.
    """

    def __init__(
        self,
        samples: MaskedSamples,
        prepare: Preprocessing,
        table: LabelTable,
        transform: PairTransform | None,
        seed: int,
    ) -> None:
        self.samples = samples
        self.prepare = prepare
        self.table = table
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor] | EvalItem:
        """(C, h, w) float32 and (H, W) uint8; for evaluation also the case and its spacing."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item = self.samples.items[index]
        mask = self.table.indices(item.mask(), item.mask_name)
        if self.transform is None:
            return self.prepare.image(item), torch.from_numpy(mask), item.case, item.spacing
        pixels = self.prepare.values(item)
        if pixels.shape[:2] != mask.shape:
            raise DataError(wrong_size(item.name, pixels.shape[:2], mask.shape))
        pixels, mask = self.transform(pixels, mask, stream_seed(self.seed, epoch, index))
        return self.prepare.tensor(pixels), torch.from_numpy(np.ascontiguousarray(mask))


class SegmentationData(ImageData):
    r"""Base of the segmentation data sets; a subclass only has to `read`.

    Args:
        root: Folder or file that holds the data.
        labels: What the values in the masks mean.
        img_size: Side of the square the network gets, pixels; 256 if nothing else says so.
        fit: "squash" resizes whole images to that square, "window" cuts windows out of them in
            training and slides a window over them in evaluation.
        scale_to: With "window", resize the shorter side of every image to this first.
        interpolation: nearest, bilinear, bicubic, area (timm's box), hamming or lanczos; with an
            antialiasing filter where images shrink, as in timm.
        augmentation: Random changes to training images: natural, medical, aerial, none, or each
            of them by name.
        group_pattern: Regular expression for the part of a name that says which images belong
            together, such as "(patient\d+)"; they are then never in two splits.
        fold: Which of `folds` equal parts is the val split, from 0; the rest is for training.
        folds: Number of parts.
        **kwargs: Arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str,
        *,
        labels: Labels = DEFAULT_LABELS,
        img_size: int | None = None,
        fit: Fit = "squash",
        scale_to: int | None = None,
        interpolation: str = "bilinear",
        augmentation: PairedAugmentation | Preset = "natural",
        group_pattern: str | None = None,
        fold: int | None = None,
        folds: int = 5,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        check_positive(img_size=img_size, scale_to=scale_to)
        self.labels = labels
        self.img_size = img_size or 256
        self.augmentation = PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
        self.group_pattern = group_pattern
        self.fold, self.folds = fold, folds
        if fold is not None and not 0 <= fold < folds:
            raise DataError(f"fold={fold} must lie in [0, {folds - 1}]")
        if scale_to is not None and fit == "squash":
            raise DataError(f"scale_to={scale_to} needs fit='window'")
        self.planned = Preprocessing(
            img_size=self.img_size,
            in_chans=self.in_chans,
            bands=self.bands,
            fit=fit,
            scale_to=scale_to,
            interpolation=interpolation,
            intensity=self.intensity,
            mean=self.given_mean,
            std=self.given_std,
        )

    @abstractmethod
    def read(self) -> MaskedCatalogue:
        """Find the images and masks, without opening them."""

    @property
    def in_order(self) -> dict[str, MaskedSamples]:
        """The splits that exist, training first."""
        splits = self.catalogue.splits
        return {split: splits[split] for split in SPLITS if split in splits}

    def divide_cases(self, samples: MaskedSamples, *, val_only: bool = False) -> dict[str, Any]:
        """Divide images that come without splits; those of one group stay together."""
        return self.divide(samples, self.groups_of(samples), val_only=val_only)

    def groups_of(self, samples: MaskedSamples) -> list[str]:
        """Group of each image: what `group_pattern` finds in its name, or what the data says."""
        if self.group_pattern is None:
            return samples.groups()
        groups = []
        for item in samples.items:
            found = re.search(self.group_pattern, item.name)
            if found is None:
                raise DataError(f"group_pattern={self.group_pattern!r} fits nothing in {item.name}")
            groups.append(found[1] if found.re.groups else found[0])
        return groups

    def draw(
        self, samples: Any, groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Draw a fold, or a division by the fractions."""
        assert groups is not None
        if self.fold is not None:
            return split_fold(groups, self.fold, self.folds, self.seed)
        if len(set(groups)) == len(groups):
            return super().draw(samples, None, fractions)
        return super().draw(samples, groups, fractions)

    @cached_property
    def survey(self) -> Survey:
        """All masks, read once.

        Raises:
            DataError: Files cannot be read or do not fit together; the text names them.
        """
        return survey_masks(self.in_order, self.labels.colours, self.workers)

    @cached_property
    def table(self) -> LabelTable:
        """Classes of the mask values."""
        known = dict.fromkeys(self.labels.values or [], "") if self.labels.classes else {}
        found = known or ({} if self.labels.colours else self.survey.holders)
        return settle_labels(self.labels, found, self.root)

    def settled(self) -> dict[str, Any]:
        """Ranges and labels as they were found, so that later commands need not look again."""
        table = self.table
        return {
            **super().settled(),
            "labels.classes": table.names,
            "labels.values": table.values,
            "labels.ignore": table.ignore,
        }

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the classes."""
        return self.table.names

    @property
    def label_values(self) -> list[int]:
        """Value of each class in a mask."""
        return self.table.values

    @property
    def background(self) -> bool:
        """The first class is no class of interest."""
        return self.labels.background

    @property
    def class_counts(self) -> list[int]:
        """Training pixels of each class."""
        return self.count("train").tolist()

    def count(self, split: str) -> NDArray[np.int64]:
        """Pixels of each class in a split, (num_classes,)."""
        found = self.survey.pixels.get(split, {})
        return np.asarray([found.get(value, 0) for value in self.table.values], dtype=np.int64)

    def check(self) -> None:
        """Fail, before any training, on pairs that do not fit or classes that are missing.

        Raises:
            DataError: The text says what is wrong and where.
        """
        self.check_splits()
        self.survey.check_values(self.table)
        empty = [self.class_names[i] for i in np.flatnonzero(self.count("train") == 0)]
        if empty and self.limit is None:
            raise DataError(f"root={str(self.root)!r}: no training pixel of class {empty}")

    def dataset(self, split: str, *, augmented: bool = False) -> MaskedDataset:
        """Images of a split, as the network gets them."""
        prepare, transform = self.preprocessing, None
        if augmented:
            transform = train_pair_transform(
                self.augmentation,
                self.img_size,
                self.in_chans,
                fit=cast(Fit, prepare.fit),
                scale_to=prepare.scale_to,
                interpolation=prepare.interpolation,
            )
        return MaskedDataset(self.samples(split), prepare, self.table, transform, self.seed)

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Images of a split in order, as lists, because their masks have their own sizes.

        Tests score volumes as a whole, so no process may get a part of one.
        """
        return self._eval_loader(split, whole=split == "test", collate=list)


def as_samples(items: Sequence[Any]) -> MaskedSamples:
    """A list of images as samples."""
    return MaskedSamples(cast(Any, tuple(items)))
