"""Reads inputs one by one or in worker processes; failures are returned, not raised."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vimamba.data.loading import SizedDataset, start_worker
from vimamba.errors import UsageError
from vimamba.tasks.outputs import reason


class Readable(Dataset[Any]):
    """The images of a data set, or a message why one cannot be read.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: SizedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """The index of an image, and the image or a message."""
        try:
            return index, self.dataset[index]
        except ImportError:
            raise
        # readers of damaged bytes may raise anything
        except Exception as error:
            return index, reason(error)


def read_all(
    dataset: SizedDataset, batch_size: int, workers: int
) -> Iterator[list[tuple[int, Any]]]:
    """Batches of a `Readable`, in order.

    Raises:
        UsageError: A worker process died.
    """
    loader = DataLoader(
        Readable(dataset),
        batch_size,
        num_workers=workers,
        worker_init_fn=start_worker,
        collate_fn=list,
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UsageError(
                "a process that loads images was killed, perhaps because memory ran out; "
                "use fewer --workers or a smaller --batch-size"
            ) from None
        yield batch
