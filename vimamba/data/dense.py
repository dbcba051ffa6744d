"""What data sets share whose targets are maps: size, windows and random changes of the images."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from vimamba.data.base import ImageData, check_positive, restore_settings
from vimamba.data.errors import DataError
from vimamba.data.masked.augmentation import (
    PRESETS,
    MaskedAugmentation,
    Preset,
    random_changes,
)
from vimamba.data.preprocessing import Fit, Preprocessing
from vimamba.data.resizing import check_interpolation
from vimamba.data.splits import SPLITS
from vimamba.sizes import ImageSize, read_size

T = TypeVar("T")


class DenseData(ImageData):
    """Base of data sets whose targets are maps.

    Args:
        root: Folder or file that holds the data.
        img_size: Side of the images the network gets, or height and width as 96x160 or [96, 160],
            pixels; 256 if nothing else says so.
        fit: "squash" resizes whole images to that size, "window" cuts windows out of them in
            training and slides a window over them in evaluation.
        scale_to: With "window", resize the shorter side of every image to this first.
        interpolation: nearest, bilinear, bicubic, area (timm's box), hamming or lanczos; with an
            antialiasing filter where images shrink, as in timm.
        augmentation: Random changes to training images: natural (mirrored left and right), medical
            (neither mirrored nor turned), microscopy and aerial (mirrored and turned), none, or
            each change by name.
        **kwargs: Arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str,
        *,
        img_size: ImageSize | None = None,
        fit: Fit = "squash",
        scale_to: int | None = None,
        interpolation: str = "bilinear",
        augmentation: MaskedAugmentation | Preset = "natural",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        check_positive(scale_to=scale_to)
        check_interpolation(interpolation)
        if scale_to is not None and fit == "squash":
            raise DataError(f"scale_to={scale_to} needs fit='window'")
        self.img_size = read_size(256 if img_size is None else img_size)
        self.fit: Fit = fit
        self.scale_to, self.interpolation = scale_to, interpolation
        chosen = PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
        self.augmentation = restore_settings(MaskedAugmentation, chosen)

    def plan(self) -> Preprocessing:
        """Whole images squashed, or windows of them."""
        return Preprocessing(
            img_size=self.img_size,
            in_chans=self.in_chans,
            bands=self.bands,
            fit=self.fit,
            scale_to=self.scale_to,
            interpolation=self.interpolation,
            intensity=self.intensity,
            mean=self.given_mean,
            std=self.given_std,
        )

    @property
    def in_order(self) -> dict[str, tuple[Any, ...]]:
        """Items of the splits that exist, training first."""
        splits = self.catalogue.splits
        return {split: splits[split] for split in SPLITS if split in splits}

    def random_changes(self, make: Callable[..., T]) -> T:
        """The random changes to training images that the arguments ask for.

        Args:
            make: `train_mask_transform`, or another that takes the same.
        """
        return random_changes(make, self.augmentation, self.planned)

    def inferred_settings(self) -> dict[str, Any]:
        """Also the augmentation in numbers, because the meaning of a preset's name may change."""
        return {
            **super().inferred_settings(),
            "augmentation": dataclasses.asdict(self.augmentation),
        }
