"""What every data set of images has in common: splits, loaders and progress for resuming."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from vimamba.data.band_sample import BandSample, sample_bands
from vimamba.data.dataset import EpochSampler, ShardedBatches, SizedDataset, start_worker
from vimamba.data.errors import DataError
from vimamba.data.folds import check_fold, find_groups, split_fold
from vimamba.data.preprocessing import DEFAULT_INTENSITY, Intensity, Preprocessing
from vimamba.data.remarks import Remarks
from vimamba.data.splits import (
    SPLITS,
    Division,
    check_groups,
    read_split,
    split_by_group,
    split_stratified,
)

Settings = TypeVar("Settings")


class ImageData(LightningDataModule):
    r"""Base of all data sets; a kind of data has to `read` and make a `dataset` of a split.

    Args:
        root: Folder or file that holds the data.
        in_chans: Channels: 3 for RGB, 1 for grey, or as many as the files have bands.
        bands: Places of the channels in files of many bands, from 0.
        intensity: How stored values become numbers in [0, 1].
        mean: Per-channel mean in [0, 1]. By default ImageNet's for three channels of 8 bits; else
            that of a sample of the training images.
        std: Per-channel standard deviation in [0, 1]; likewise.
        batch_size: Images per step, of each process if there are several.
        workers: Processes that load images; 0 loads in the main process.
        val_fraction: Part of the training images to hold out where there is no val split.
        test_fraction: Part to hold out for a test where nothing is split yet.
        split_csv: Take the division from this file (as a run writes it) instead of drawing one.
        limit: Use at most this many images of each split.
        group_pattern: Regular expression for the part of a name that says which images belong
            together, such as "(patient\d+)"; they are then never in two splits.
        fold: Which of `folds` equal parts is held out, from 0; parts are drawn from all images that
            are not given as test split.
        folds: Number of parts.
        fold_as: The split that the part is: "val", by which then the best epoch is chosen, or
            "test", and a val split is drawn from the rest; a test split that is given takes no
            part.
        seed: Start of all random streams.
    """

    in_chans: int
    img_size: int | tuple[int, ...]
    # what the arguments say of the way from pixels to the network's input
    planned: Preprocessing

    def __init__(
        self,
        root: str,
        *,
        in_chans: int = 3,
        bands: list[int] | None = None,
        intensity: Intensity = DEFAULT_INTENSITY,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 64,
        workers: int = 2,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_csv: str | None = None,
        limit: int | None = None,
        group_pattern: str | None = None,
        fold: int | None = None,
        folds: int = 5,
        fold_as: Literal["val", "test"] = "val",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.in_chans = in_chans
        self.bands = bands
        self.intensity = restore_settings(Intensity, intensity)
        self.given_mean, self.given_std = mean, std
        self.batch_size = batch_size
        self.workers = workers
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_csv = Path(split_csv) if split_csv else None
        self.limit = limit
        self.group_pattern = group_pattern
        self.fold, self.folds, self.fold_as = fold, folds, fold_as
        self.seed = seed
        self.first_epoch = 0
        self.whole: str | None = None
        self.remarks = Remarks()
        # group of each image by its name, where the data says more than the name does
        self.grouping: dict[str, str] = {}
        check_positive(batch_size=batch_size, limit=limit, in_chans=in_chans)
        if workers < 0:
            raise DataError(f"workers={workers} must be at least 0")
        check_fold(fold, folds)
        for name, value in (("mean", mean), ("std", std)):
            if value is not None and len(value) != in_chans:
                raise DataError(f"{name}={value} needs {in_chans} values")
        # as plain values, so that a checkpoint holds them and loads without running its code
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = dataclasses.asdict(value)

    @abstractmethod
    def read(self) -> Any:
        """Find the images, without opening them: a catalogue with `splits` and `drawn`."""

    @abstractmethod
    def dataset(self, split: str, *, augmented: bool = False) -> SizedDataset:
        """Images of a split, as the network gets them."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def settled(self) -> dict[str, Any]:
        """Arguments that the data decided, by dotted names, to be kept with a run."""
        found: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if self.intensity.is_open:
            found["intensity.ranges"] = [list(ends) for ends in self.band_sample.ranges or ()]
        return found

    @cached_property
    def band_sample(self) -> BandSample:
        """What a sample of the training images tells of their bands.

        Raises:
            DataError: An image cannot be read; the text names it.
        """
        splits = self.catalogue.splits
        samples = next((splits[split] for split in SPLITS if split in splits), None)
        return sample_bands(samples, self.planned)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """From stored pixels to the network's input."""
        planned = self.planned
        if not planned.is_settled:
            found = self.band_sample
            ranges = found.ranges if planned.intensity.is_open else None
            planned = planned.settled(ranges, found.mean, found.std)
        return planned

    @property
    def mean(self) -> list[float]:
        """Per-channel mean, in [0, 1]."""
        return list(self.preprocessing.mean or ())

    @property
    def std(self) -> list[float]:
        """Per-channel standard deviation, in [0, 1]."""
        return list(self.preprocessing.std or ())

    @cached_property
    def catalogue(self) -> Any:
        """The data set, read once and cut down to `limit`."""
        self.remarks = Remarks()
        found = self.read()
        splits = {name: samples for name, samples in found.splits.items() if len(samples)}
        if self.limit is not None:
            splits = {name: self._cut(samples, self.limit) for name, samples in splits.items()}
        return dataclasses.replace(found, splits=splits)

    def prepare_data(self) -> None:
        """Find the images before anything is built on them, so that what is wrong is said first."""
        self.catalogue  # noqa: B018

    def notes(self) -> list[str]:
        """Lines on what `read` left out and on what is odd about the data."""
        self.catalogue  # noqa: B018  has it read
        return self.remarks.lines()

    def tallies(self) -> dict[str, dict[str, int]]:
        """How many of what there are in each split besides images: groups, volumes, patients."""
        if not self.grouping:
            return {}
        groups = {
            split: len({self.grouping[samples.name(i)] for i in range(len(samples))})
            for split, samples in self.catalogue.splits.items()
        }
        return {"groups": groups}

    def _cut(self, samples: Any, limit: int) -> Any:
        """A seeded choice of at most `limit` images."""
        order = np.random.default_rng(self.seed).permutation(len(samples))
        return samples.take(np.sort(order[:limit]))

    def samples(self, split: str) -> Any:
        """Images of a split that must exist."""
        if split not in self.catalogue.splits:
            have = sorted(self.catalogue.splits)
            raise DataError(f"root={str(self.root)!r} has no {split} split, only {have}")
        return self.catalogue.splits[split]

    def check_splits(self) -> None:
        """Fail unless there is something to train on and to choose the best epoch by.

        There need be nothing to choose by where that is asked for: with val_fraction=0, or a
        division of one's own.
        """
        wanted = ["train"]
        if self.fractions["val"] > 0 and self.split_csv is None:
            wanted.append("val")
        for split in wanted:
            if split not in self.catalogue.splits:
                raise DataError(f"root={str(self.root)!r}: there is no image in the {split} split")

    def take_whole(self, split: str) -> None:
        """Where a division would be drawn, take all images as one split: to score other data."""
        self.whole = split
        self.__dict__.pop("catalogue", None)

    def take_fold(self, fold: int) -> None:
        """Take another fold of the same cross-validation."""
        self.fold = fold
        self.__dict__.pop("catalogue", None)

    def divide(
        self,
        samples: Any,
        groups: Sequence[str] | None = None,
        *,
        val_only: bool = False,
    ) -> dict[str, Any]:
        """Divide images that come without splits.

        Args:
            samples: All images.
            groups: Images of one group stay together.
            val_only: A test split exists already.
        """
        if self.whole:
            return {} if val_only else {self.whole: samples}
        groups = self.named_groups(samples) or groups
        if self.split_csv:
            division: Division = read_split(self.split_csv, samples, self.remarks)
            if groups is not None:
                check_groups(division, groups)
        else:
            fractions = {"val": self.fractions["val"]} if val_only else self.fractions
            division = self.draw(samples, groups, fractions)
        return {name: samples.take(indices) for name, indices in division.items()}

    def draw(
        self, samples: Any, groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Draw a fold, or a division by the fractions, from the seed."""
        if self.fold is None:
            return self.draw_parts(samples, groups, fractions)
        apart = split_fold(self.strata(samples), groups, self.fold, self.folds, self.seed)
        if self.fold_as == "val":
            return apart
        rest = apart["train"]
        inner = self.draw_parts(
            samples.take(rest),
            None if groups is None else [groups[int(i)] for i in rest],
            {"val": self.fractions["val"]},
        )
        return {**{split: rest[at] for split, at in inner.items()}, "test": apart["val"]}

    def draw_parts(
        self, samples: Any, groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Draw a division by the fractions."""
        labels = self.strata(samples)
        if groups is None:
            return split_stratified(labels, fractions, self.seed)
        return split_by_group(labels, groups, fractions, self.seed)

    def named_groups(self, samples: Any) -> list[str] | None:
        """Group of each image as `group_pattern` finds it in its name; None without a pattern."""
        if self.group_pattern is None:
            return None
        return find_groups(self.group_pattern, map(samples.name, range(len(samples))))

    @property
    def draws_fold(self) -> bool:
        """Of a data set that is given in splits, a fold is drawn."""
        return self.fold is not None and self.whole is None

    def pool_for_fold(self, splits: dict[str, Any]) -> dict[str, Any]:
        """Add the images given as val to those for training where a fold is drawn from both."""
        if not (self.draws_fold and {"train", "val"} <= splits.keys()):
            return splits
        rest = {split: samples for split, samples in splits.items() if split != "val"}
        return {**rest, "train": splits["train"].join(splits["val"])}

    def hold_out(self, splits: dict[str, Any]) -> dict[str, Any]:
        """Draw a val split or a fold from the training images; a given test split stays.

        With `split_csv` all images are divided anew.
        """
        if self.split_csv is not None:
            return self.divide(reduce(lambda some, more: some.join(more), splits.values()))
        return {**splits, **self.divide(splits["train"], val_only=True)}

    def strata(self, samples: Any) -> NDArray:
        """Labels whose proportions every split keeps; one for all images unless overridden."""
        return np.zeros(len(samples), dtype=np.int64)

    @property
    def shard(self) -> dict[str, int]:
        """This process and how many there are."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _loader(
        self,
        dataset: SizedDataset,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        **batches: Any,
    ) -> DataLoader[Any]:
        """A loader of batches that `batches`, arguments of torch's, describe."""
        return DataLoader(
            cast(Any, dataset),
            num_workers=self.workers,
            worker_init_fn=start_worker,
            collate_fn=collate,
            pin_memory=self.trainer is not None
            and self.trainer.num_devices > 0
            and torch.cuda.is_available(),
            **batches,
        )

    def state_dict(self) -> dict[str, int]:
        """Epochs that are finished, for the checkpoint."""
        if self.trainer is None:
            return {"epochs": self.first_epoch}
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return {"epochs": progress.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin with the epoch after those: workers fetch its images before Lightning names it."""
        self.first_epoch = state_dict["epochs"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented training images in a new order every epoch."""
        dataset = self.dataset("train", augmented=True)
        sampler = EpochSampler(len(dataset), self.seed, epoch=self.first_epoch, **self.shard)
        return self._loader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=len(sampler) >= self.batch_size,
            persistent_workers=self.workers > 0,
        )

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """This process's share of a split, in order."""
        return self._eval_loader(split)

    def _eval_loader(
        self, split: str, *, whole: bool = False, collate: Callable[[list[Any]], Any] | None = None
    ) -> DataLoader[Any]:
        """Images of a split in order: of several processes each gets a share, or `whole` all."""
        dataset, shard = self.dataset(split), self.shard
        if whole or shard["world_size"] == 1:
            return self._loader(dataset, collate=collate, batch_size=self.batch_size)
        batches = ShardedBatches(len(dataset), self.batch_size, **shard)
        return self._loader(dataset, collate=collate, batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation images in order; no loader where there are none."""
        return self.eval_dataloader("val") if "val" in self.catalogue.splits else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images in order."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images to score in order, of the first split there is of test, val and train.

        Batches are those of the evaluation, labels or masks included; of several processes, each
        gets a share.
        """
        split = next(name for name in ("test", "val", "train") if name in self.catalogue.splits)
        return self.eval_dataloader(split)


def restore_settings(kind: type[Settings], value: Settings | dict[str, Any]) -> Settings:
    """Settings as given, or from the plain values that a checkpoint holds."""
    return kind(**value) if isinstance(value, dict) else value


def check_positive(**values: int | None) -> None:
    """Fail on a number below 1, by its name."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise DataError(f"{name}={value} must be at least 1")
