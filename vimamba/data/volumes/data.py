"""Base class of volume data sets: fingerprint, plan, prepared cases, patches."""

import atexit
import dataclasses
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from vimamba.data.base import check_positive, restore_settings
from vimamba.data.errors import DataError
from vimamba.data.loading import SizedDataset
from vimamba.data.masked.labels import DEFAULT_LABELS, Labels
from vimamba.data.masked.segmentation import SegmentationData
from vimamba.data.masked.survey import Survey
from vimamba.data.preprocessing import Intensity
from vimamba.data.volumes import planning
from vimamba.data.volumes.augmentation import (
    DEFAULT_VOLUME_AUGMENTATION,
    VolumeAugmentation,
    make_transform,
)
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.dataset import PatchDataset, PreparedCases, Sampling, WholeDataset
from vimamba.data.volumes.preprocessing import VolumePreprocessing
from vimamba.data.volumes.survey import SeenCase, join, survey_cases
from vimamba.sizes import ImageSize, read_size

# arguments of image data sets that do not apply to volumes
_OF_IMAGES = ("fit", "scale_to", "interpolation", "bands")


class VolumeData(SegmentationData):
    """Base of the data sets of volumes; a subclass only has to `read` `VolumeCase`s.

    Args:
        root: Folder with the data.
        labels: Meaning of the mask values.
        regions: Sets of mask values that are also scored, as unions, by name, such as
            {"whole tumor": [1, 2, 4]}.
        img_size: Size of the patches that the network sees: a side, or slices, rows and columns as
            32x96x96; by default from `propose_patch`.
        spacing: Spacing of slices, rows and columns in millimeters that volumes are resampled to;
            by default from `target_spacing`.
        patches: Patches of each case per epoch.
        foreground: Fraction of the patches that are centered on a foreground voxel.
        augmentation: Random changes of the patches.
        cache: Folder for the prepared cases, 5 bytes per voxel; a temporary one by default, which
            is removed at the end.
        batch_size: Patches per step, of each process if there are several.
        **kwargs: Arguments of `SegmentationData`; `intensity` by default from `propose_intensity`.
    """

    group_word = "patients"
    # whether the values are Hounsfield units, if known
    is_ct: bool | None = None
    # on the class, too, for the command to hand them to the task
    regions: dict[str, list[int]] | None = None

    def __init__(
        self,
        root: str,
        *,
        labels: Labels = DEFAULT_LABELS,
        regions: dict[str, list[int]] | None = None,
        img_size: ImageSize | None = None,
        spacing: list[float] | None = None,
        patches: int = 8,
        foreground: float = 0.67,
        augmentation: VolumeAugmentation = DEFAULT_VOLUME_AUGMENTATION,
        cache: str | None = None,
        batch_size: int = 2,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, labels=labels, batch_size=batch_size, **kwargs)
        for name in _OF_IMAGES:
            value, usual = self.hparams.get(name), {"fit": "squash", "interpolation": "bilinear"}
            if value is not None and value != usual.get(name):
                raise DataError(
                    f"{name}={value!r} is for images; volumes have spacing and img_size"
                )
        check_positive(patches=patches)
        if not 0 <= foreground <= 1:
            raise DataError(f"foreground={foreground} must lie in [0, 1]")
        if spacing is not None and not (len(spacing) == 3 and min(spacing) > 0):
            raise DataError(f"spacing={spacing} must be three lengths above 0, in millimeters")
        self.regions = regions
        self.given_size = None if img_size is None else read_size(img_size, 3)
        self.given_spacing = spacing
        self.patches, self.foreground = patches, foreground
        self.changes = restore_settings(VolumeAugmentation, augmentation)
        self.given_cache = cache
        del self.img_size

    def check(self) -> None:
        """Fail, before any training, on cases that cannot be used and classes that are missing.

        Raises:
            DataError: The message names them.
        """
        super().check()
        for name, values in (self.regions or {}).items():
            if unknown := [value for value in values if value not in self.table.values]:
                raise DataError(
                    f"regions: {name!r} has {unknown}, the masks have the classes "
                    f"{self.table.values}"
                )

    @property
    def cases(self) -> dict[str, tuple[VolumeCase, ...]]:
        """The cases of the splits that exist, training first."""
        return cast(Any, self.in_order)

    @cached_property
    def cases_seen(self) -> dict[str, list[SeenCase]]:
        """All cases, read once.

        Raises:
            DataError: Cases cannot be used; the message names them.
        """
        return survey_cases(self.cases, self.workers, self.remarks)

    @cached_property
    def survey(self) -> Survey:
        """What the masks hold."""
        return join(self.cases, self.cases_seen)

    @property
    def fingerprint(self) -> list[SeenCase]:
        """The cases that the plan is based on: training cases, if there are any."""
        seen = self.cases_seen
        return next(seen[split] for split in ("train", "val", "test") if seen.get(split))

    @cached_property
    def spacing(self) -> list[float]:
        """Spacing along each axis in millimeters that volumes are resampled to."""
        return list(self.given_spacing or planning.target_spacing(self.fingerprint))

    @cached_property
    def img_size(self) -> int | tuple[int, ...]:  # type: ignore[override]
        """Size of the patches."""
        if self.given_size is not None:
            return self.given_size
        sizes = planning.sizes_at(self.fingerprint, self.spacing)
        return read_size(planning.propose_patch(sizes, self.spacing), 3)

    @cached_property
    def in_chans(self) -> int:
        """Channels of a case."""
        first = next(iter(self.cases.values()))[0]
        if self.given_chans not in (None, first.channels):
            raise DataError(
                f"in_chans={self.given_chans}: volume {first.paths[0]} has {first.channels}"
            )
        return first.channels

    def plan(self) -> VolumePreprocessing:
        """Resample, then take patches."""
        return VolumePreprocessing(
            img_size=self.img_size,
            in_chans=self.in_chans,
            bands=None,
            fit="window",
            scale_to=None,
            interpolation="bilinear",
            intensity=self.intensity,
            mean=self.given_mean,
            std=self.given_std,
            spacing=tuple(self.spacing),
        )

    @cached_property
    def preprocessing(self) -> VolumePreprocessing:  # type: ignore[override]
        """From stored volumes to the network's input."""
        planned = self.plan()
        if planned.is_complete:
            return planned
        intensity, mean, std = planning.propose_intensity(self.fingerprint, is_ct=self.is_ct)
        if (
            not self.intensity.is_open
        ):  # the user's setting takes precedence, and is normalized per case
            intensity = dataclasses.replace(self.intensity, zscore=True)
            mean, std = [0.0] * self.in_chans, [1.0] * self.in_chans
        return dataclasses.replace(
            planned, intensity=intensity, mean=planned.mean or mean, std=planned.std or std
        )

    def inferred_settings(self) -> dict[str, Any]:
        """The plan and the labels, so that later commands need not infer them again."""
        prepare, table, size = self.preprocessing, self.table, self.img_size
        return {
            "in_chans": self.in_chans,
            "mean": list(prepare.mean or ()),
            "std": list(prepare.std or ()),
            "img_size": size if isinstance(size, int) else list(size),
            "spacing": list(self.spacing),
            "intensity": _plain(prepare.intensity),
            "labels.classes": table.names,
            "labels.values": table.values,
            "labels.ignore": table.ignore,
            "augmentation": dataclasses.asdict(self.changes),
            **({"regions": self.regions} if self.regions else {}),
        }

    def take_whole(self, split: str) -> None:
        """Where a division would be drawn, take all cases as one split: to score other data."""
        super().take_whole(split)
        self.__dict__.pop("cases_seen", None)

    @cached_property
    def cache(self) -> Path:
        """Folder of the prepared cases."""
        if self.given_cache is not None:
            folder = Path(self.given_cache)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder = Path(tempfile.mkdtemp(prefix="vimamba-volumes-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def prepared(self, split: str) -> PreparedCases:
        """Cases of a split, resampled and normalized."""
        cases: tuple[VolumeCase, ...] = self.items(split)
        return PreparedCases(cases, self.preprocessing, self.table, self.cache)

    def dataset(self, split: str, *, augmented: bool = False) -> SizedDataset:
        """Whole cases of a split, or random patches of them."""
        prepared = self.prepared(split)
        if not augmented:
            return WholeDataset(prepared)
        sampling = Sampling(self.patches, self.foreground, int(self.background))
        return PatchDataset(prepared, sampling, make_transform(self.changes), self.seed)

    def describe(self) -> list[str]:
        """Lines on spacings, sizes and the plan."""
        seen = [case for cases in self.cases_seen.values() for case in cases]
        sizes, spacings = (np.asarray([getattr(c, name) for c in seen]) for name in _MEASURES)
        low, middle, high = (
            (
                " x ".join(f"{v:g}" for v in fold(sizes)),
                " x ".join(f"{v:.3g}" for v in fold(spacings)),
            )
            for fold in (lambda a: a.min(0), lambda a: np.median(a, 0), lambda a: a.max(0))
        )
        target = " x ".join(f"{v:.4g}" for v in self.spacing)
        prepare = self.preprocessing
        patch = "x".join(map(str, np.broadcast_to(self.img_size, 3)))
        how = "per case to mean 0, std 1" if prepare.intensity.zscore else (
            f"with mean {list(prepare.mean or ())}, std {list(prepare.std or ())} of the data"
        )  # fmt: skip
        ends = prepare.intensity.window or prepare.intensity.ranges
        clipped = f"clipped to {ends}" if ends else "clipped to percentiles of each case"
        return [
            f"slices x rows x columns: {low[0]} to {high[0]}, median {middle[0]}",
            f"spacing {low[1]} to {high[1]} mm, median {middle[1]}; resampled to {target} mm",
            f"{self.in_chans} channel(s), {clipped}, normalized {how}; patches of {patch} voxels",
        ]


_MEASURES = ("shape", "spacing")


def _plain(intensity: Intensity) -> dict[str, Any]:
    """An intensity in the form of a recipe."""
    content = dataclasses.asdict(intensity)
    return {
        name: [list(v) if isinstance(v, tuple) else v for v in value]
        if isinstance(value, list | tuple)
        else value
        for name, value in content.items()
    }
