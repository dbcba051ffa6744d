"""Files and folders that appear whole or not at all.

What is new is written beside its place under a name that no other process takes, brought to the
disk, and renamed: whoever looks finds the old content or the new, after a crash as well.
"""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vimamba.errors import WriteError

# how the folders are called in which things are made; a killed process leaves them behind
_PART = ".part-"
# renameat2 of Linux: the current folder, and "exchange the two names"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Write a file that appears whole or not at all.

    Args:
        path: What is written or replaced; its folder is made.

    Yields:
        A path in the same folder, with the same suffixes, to write to. It becomes `path` if the
        block ends without an error, and is removed otherwise.

    Raises:
        WriteError: The disk is full, the folder cannot be written, or the like.
    """
    path = Path(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=path.parent))
    try:
        with _named(path):
            yield part / path.name
            _sync(part / path.name)
            os.replace(part / path.name, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def write_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder that appears, or takes the place of another, in one step.

    Where the file system cannot exchange two names (outside Linux, on some network drives), the
    earlier folder is moved aside first, for the moment between two renames.

    Args:
        folder: What is written or replaced; its parent is made.

    Yields:
        An empty folder beside it to write to.

    Raises:
        WriteError: The disk is full, the parent cannot be written, or the like.
    """
    folder = Path(folder)
    with _named(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=folder.parent))
    try:
        new = part / folder.name
        with _named(folder):
            new.mkdir()
            yield new
            for path in (*new.rglob("*"), new):
                _sync(path)
            if not folder.exists():
                os.rename(new, folder)
            elif not _exchange(new, folder):
                os.rename(folder, part / "earlier")
                os.rename(new, folder)
            _sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def list_entries(folder: str | Path) -> list[Path]:
    """What lies in a folder, in order, without what a killed process left half-written."""
    return sorted(path for path in Path(folder).iterdir() if not path.name.startswith(_PART))


def check_writable(folder: str | Path) -> None:
    """Fail before the work rather than after it: make the folder and a file in it.

    Raises:
        WriteError: It cannot be made or written.
    """
    with _named(Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the operating system as one that names what could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{str(path)!r} cannot be written: {reason}") from error


def _sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk, where the system can."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError:
        if not is_folder:  # some network drives refuse it for folders
            raise
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change names in one step; False where that cannot be had."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than 2018
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
