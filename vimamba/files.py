"""Writes files and folders atomically: completely or not at all.

New content is written next to the target under a name that no other process uses, synced to disk,
and renamed: readers see either the old or the new content, even after a crash.
"""

import contextlib
import csv
import ctypes
import errno
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vimamba.errors import WriteError

# names of temporary folders; a killed process leaves them behind
_PART = ".part-"
_LOCK = f"{_PART}lock"
# folders locked by this process, which the system would allow to lock them again
_locked: set[Path] = set()
# errors of a file system without locks
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# errors for a full disk, a quota, and missing write permission
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# arguments of Linux's renameat2: the current folder, and the flag to exchange names
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Write a file atomically.

    Args:
        path: File to write or replace; its folder is created.

    Yields:
        A path in the same folder, with the same suffixes, to write to. It becomes `path` if the
        block ends without an error, and is removed otherwise.

    Raises:
        WriteError: The disk is full, the folder is not writable, or similar.
    """
    path = Path(path)
    with _beside(path) as new:
        yield new
        _sync(new)
        os.replace(new, path)
        _sync(path.parent)


@contextmanager
def write_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder that appears, or takes the place of another, in one step.

    Where the file system cannot exchange two names (outside Linux, on some network drives), the
    earlier folder is moved aside first, for the moment between two renames.

    Args:
        folder: What is written or replaced; its parent is made.

    Yields:
        An empty folder next to it to write to.

    Raises:
        WriteError: The disk is full, the parent is not writable, or similar.
    """
    folder = Path(folder)
    with _beside(folder) as new:
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            _sync(path)
        if not folder.exists():
            os.rename(new, folder)
        elif not _exchange(new, folder):
            earlier = new.with_name(f"{new.name}.earlier")
            os.rename(folder, earlier)
            try:
                os.rename(new, folder)
            except OSError:
                os.rename(earlier, folder)
                raise
        _sync(folder.parent)


def list_entries(folder: str | Path) -> list[Path]:
    """The contents of a folder, in order, without half-written files of a killed process."""
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
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Be the only one to write a folder, as long as the block runs and this process lives.

    The system keeps the lock and drops it with the process, however that ends, on this machine and,
    over NFS with its lock service, on others. A file system without locks gets a warning instead.

    Args:
        folder: Made if it is not there, and removed again if the block leaves it empty.

    Raises:
        WriteError: Another process holds the lock (the message names it), or the folder cannot be
            written.
    """
    folder = Path(folder).resolve()
    if folder in _locked:
        raise WriteError(f"{str(folder)!r} is written by this very process already")
    made = not folder.exists()
    check_writable(folder)
    path = folder / _LOCK
    handle = _open_lock(path)
    _locked.add(folder)
    try:
        yield
    finally:
        _locked.discard(folder)
        # before the lock is released, so that no process locks a file about to be removed
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _open_lock(path: Path) -> int:
    """Lock a file, made for it, and write down who did; returns its handle."""
    while True:
        with _named(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(handle)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                owner = os.pread(handle, 200, 0) if hasattr(os, "pread") else b""
                os.close(handle)
                who = owner.decode(errors="replace").strip() or "another process"
                raise WriteError(f"{str(path.parent)!r} is being written by {who}") from None
            warnings.warn(f"{path.parent} cannot be locked: {error.strerror}", stacklevel=4)
        # whoever had it may have removed it between the two calls
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)
    with contextlib.suppress(OSError):  # who it is only serves the message
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} of {socket.gethostname()}".encode())
    return handle


def _take(handle: int) -> None:
    """Lock a file or raise OSError; forked workers do not inherit it."""
    system: Any
    if os.name == "nt":
        import msvcrt as system

        # of a byte after the text, because locked bytes cannot be read by others
        os.lseek(handle, 1024, os.SEEK_SET)
        system.locking(handle, system.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl as system

        system.lockf(handle, system.LOCK_EX | system.LOCK_NB)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder next to it, which is removed at the end.

    Raises:
        WriteError: For any error of the operating system.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=path.parent))
        try:
            yield part / path.name
        finally:
            shutil.rmtree(part, ignore_errors=True)


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
    # Windows syncs only what is open for writing; elsewhere a file may be read-only
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
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


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal or different columns as CSV, whole."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with write_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
