"""Samplers and seeds: random streams are functions of (seed, epoch, image) and nothing else.

The sampler hands out (epoch, index) pairs and each dataset derives the augmentation's seed from
them. Worker processes, their number and interruptions therefore change nothing.
"""

import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from vimamba.data.errors import DataError


def stream_seed(*key: int) -> int:
    """A 32-bit seed that differs between keys such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class SizedDataset(Protocol):
    """Images of a split, indexed by index or (epoch, index) pair."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """One image with its target."""
        ...


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order in every epoch, as (epoch, index) pairs.

    Args:
        size: Number of images.
        seed: Seed of the orders.
        rank: Rank of this process.
        world_size: Number of processes that share an epoch; each gets the same number of images.
        epoch: The first epoch. Workers prefetch before `set_epoch` is called.
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

    Every image is in exactly one batch of one process. All processes get the same number of
    batches, so that none waits for another forever; a batch has one extra image if needed.

    Args:
        size: Number of images.
        batch_size: Images in a batch.
        rank: Rank of this process.
        world_size: Number of processes that share the images.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int, world_size: int) -> None:
        steps = min(math.ceil(size / (batch_size * world_size)), size // world_size)
        if steps == 0:
            raise DataError(f"{size} images cannot be shared by {world_size} processes")
        parts = np.array_split(np.arange(size), steps * world_size)
        self.batches = [part.tolist() for part in parts[rank::world_size]]

    def __len__(self) -> int:
        """Number of batches per process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one batch after the other."""
        return iter(self.batches)


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_worker(worker_id: int) -> None:
    """Limit each worker process to one thread: the workers themselves share the cores."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
