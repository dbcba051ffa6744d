"""A folder that one process at a time may write to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vimamba.cli.errors import UsageError

LOCK = ".lock"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the lock dies with its process.

    Args:
        out: A folder that exists.

    Raises:
        UsageError: Another process has it.
    """
    with (out / LOCK).open("a") as file:
        try:
            _take(file.fileno())
        except OSError:
            raise UsageError(f"--out {out} is in use by another process") from None
        yield


def _take(handle: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
