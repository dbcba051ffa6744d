"""A torch Dataset whose random streams are a function of (seed, epoch, image) and nothing else.

The sampler hands out (epoch, index) pairs and the dataset derives the augmentation's seed from
them. Worker processes, their number and interruptions therefore change nothing.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vimamba.data.augmentation import Transform
from vimamba.data.errors import DataError
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.samples import Samples


def stream_seed(*key: int) -> int:
    """A 32-bit seed that differs between keys such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class SizedDataset(Protocol):
    """Images of a split, by index or (epoch, index) pair."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """One image with what belongs to it."""
        ...


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels, as the network and the scores get them.

    Args:
        samples: The images and labels.
        prepare: From stored pixels to a tensor.
        transform: Random changes, with a seed to a tensor; None for evaluation.
        seed: Start of all random streams.
    """

    def __init__(
        self, samples: Samples, prepare: Preprocessing, transform: Transform | None, seed: int
    ) -> None:
        self.samples = samples
        self.prepare = prepare
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(C, size, size) float32 and a label, for an index or an (epoch, index) pair."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item, label = self.samples.item(index), torch.as_tensor(self.samples.labels[index])
        if self.transform is None:
            return self.prepare.image(item), label
        seed = stream_seed(self.seed, epoch, index)
        return self.transform(self.prepare.values(item), seed), label


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order in every epoch, as (epoch, index) pairs.

    Args:
        size: Number of images.
        seed: Start of the orders.
        rank: This process, of `world_size`.
        world_size: Processes that share an epoch; each gets equally many images.
        epoch: The first epoch. Workers fetch ahead before `set_epoch` is called.
    """

    def __init__(
        self, size: int, seed: int, *, rank: int = 0, world_size: int = 1, epoch: int = 0
    ) -> None:
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Images for this process."""
        return self.size // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs for this process."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        for index in order[self.rank :: self.world_size][: len(self)]:
            yield self.epoch, int(index)


class ShardedBatches(Sampler[list[int]]):
    """One process's batches of images in order.

    Every image is in one batch of one process. All processes get equally many batches, so that none
    waits for another in vain; a batch holds one image more than asked for where that is needed.

    Args:
        size: Number of images.
        batch_size: Images in a batch.
        rank: This process, of `world_size`.
        world_size: Processes that share the images.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int, world_size: int) -> None:
        steps = min(math.ceil(size / (batch_size * world_size)), size // world_size)
        if steps == 0:
            raise DataError(f"{size} images cannot be shared by {world_size} processes")
        parts = np.array_split(np.arange(size), steps * world_size)
        self.batches = [part.tolist() for part in parts[rank::world_size]]

    def __len__(self) -> int:
        """Batches of every process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one batch after the other."""
        return iter(self.batches)


def start_worker(worker_id: int) -> None:
    """Keep each worker process to one thread: the workers themselves share the cores."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
