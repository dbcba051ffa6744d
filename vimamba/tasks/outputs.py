"""Names of predictions, which never overwrite files that are not ours, and inputs that failed.

An output is always inside the output folder, regardless of the name of its input. Two inputs whose
outputs would be the same file, on any file system, are rejected in advance. Existing files are
replaced only if an earlier call wrote them.
"""

import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vimamba.errors import UsageError, VimambaError

# exit code if some or all of the inputs failed
SOME_INPUTS_FAILED = 3
MOST_REASONS = 5

# characters that Windows does not allow in names, and that a terminal does not show
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# longest name in bytes on nearly all file systems
LONGEST = 255


def output_name(path: str, ending: str) -> str:
    """The name of an input's output, relative to the output folder.

    Args:
        path: Path of the input, without its suffix. Drives, roots, `.` and `..` are removed, and
            characters that some file systems do not allow become `_`.
        ending: Suffix of the output, such as ".png".

    Returns:
        A relative path with forward slashes, without the suffix.
    """
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]
    if not parts:
        raise UsageError(f"{path!r} is not a file name")
    *folders, name = parts
    return "/".join([*(_clean(part, "") for part in folders), _clean(name, ending)])


def _clean(part: str, ending: str) -> str:
    """A part of a path in a form that every file system accepts."""
    part = FORBIDDEN.sub("_", part)
    if part[0] == ".":  # hidden, or one of our own temporary names
        part = f"_{part[1:]}"
    if part[-1] in ". " and not ending:
        part = f"{part[:-1]}_"
    if DEVICES.fullmatch(part):
        part = f"_{part}"
    most = LONGEST - len(ending)
    if len(os.fsencode(part)) <= most:
        return part
    mark = hashlib.sha256(os.fsencode(part)).hexdigest()[:8]
    return os.fsencode(part)[: most - 9].decode("utf-8", "ignore") + f"-{mark}"


def fold(path: Path) -> str:
    """A path as seen by a file system that ignores case and Unicode composition."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


@dataclass(frozen=True)
class Target:
    """A file to write.

    Attributes:
        path: The file.
        source: Description of its source.
    """

    path: Path
    source: str


def check_apart(targets: Sequence[Target]) -> None:
    """Fail if two files, or a file and a folder, would have the same name.

    Raises:
        UsageError: The message names both inputs.
    """
    taken: dict[str, Target] = {}
    for target in targets:
        other = taken.setdefault(fold(target.path), target)
        if other is not target:
            raise UsageError(
                f"{shown(other.source)} and {shown(target.source)} would get the same name, "
                f"{shown(target.path)}; predict them separately"
            )
    for target in targets:
        for folder in target.path.parents:
            if fold(folder) in taken:
                other = taken[fold(folder)]
                raise UsageError(
                    f"{shown(target.source)} would be written below {shown(folder)}, which is "
                    f"the output of {shown(other.source)}; predict them separately"
                )


def check_inside(targets: Sequence[Target], out: Path) -> None:
    """Fail if a link points outside of the output folder.

    Raises:
        UsageError: The message names the link.
    """
    inside = out.resolve()
    for folder in {target.path.parent for target in targets}:
        if not folder.resolve().is_relative_to(inside):
            raise UsageError(
                f"{shown(folder)} points outside of --out {shown(out)}; remove the link"
            )


def check_no_input(targets: Sequence[Target], inputs: Iterable[Path]) -> None:
    """Fail if an input would be overwritten.

    Raises:
        UsageError: The message names the input.
    """
    read = {os.path.realpath(path) for path in inputs}
    for target in targets:
        if os.path.realpath(target.path) in read:
            raise UsageError(
                f"{shown(target.path)} is an input and would be overwritten: choose another --out"
            )


def is_file(path: Path) -> bool:
    """Whether the file exists; False for a name that the system does not allow."""
    return os.path.isfile(path)


def no_file(path: Path) -> str:
    """The message for an input that is not a file."""
    if os.path.isdir(path):
        return f"{shown(path)} is a folder"
    if os.path.exists(path):
        return f"{shown(path)} is not a regular file"
    return f"{shown(path)} is neither a file nor a folder"


def shown(name: object) -> str:
    """A name as one line of text that is safe for every terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))
    return text.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(
        sys.stdout.encoding or "utf-8"
    )


def lacks_memory(error: Exception) -> bool:
    """Whether something did not fit into memory."""
    of_torch = isinstance(error, RuntimeError) and "memory" in str(error)
    return isinstance(error, MemoryError) or of_torch


def concerns_input(error: Exception) -> bool:
    """Whether an error says that one input cannot be used, so that others still can."""
    return isinstance(error, VimambaError) or lacks_memory(error)


def reason(error: Exception) -> str:
    """Why something failed, in a line."""
    if lacks_memory(error):
        return "it does not fit into memory"
    text = shown(str(error).strip() or "no reason is given")
    return text if isinstance(error, VimambaError) else f"{type(error).__name__}: {text}"


def present(inputs: Iterable[Path], failed: "FailedInputs") -> list[Path]:
    """The inputs that exist; the others are noted."""
    found = []
    for path in inputs:
        if os.path.exists(path):
            found.append(path)
        else:
            failed.add(path, no_file(path))
    return found


@dataclass
class FailedInputs:
    """The inputs that failed, without affecting the others.

    Attributes:
        reasons: The reason of each, by its name.
    """

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: object, why: str) -> None:
        """Note an input."""
        self.reasons[str(name)] = why

    @contextmanager
    def collect(self, name: object) -> Iterator[None]:
        """Note an input that cannot be used or does not fit into memory; other errors pass."""
        try:
            yield
        except Exception as error:
            if not concerns_input(error):
                raise
            self.add(name, reason(error))

    def report(self, total: int) -> int:
        """Print them to standard error.

        Args:
            total: Number of inputs.

        Returns:
            The exit code: 0 if none failed.
        """
        if not self.reasons:
            return 0
        sys.stdout.flush()
        print(f"no prediction for {len(self.reasons)} of {total} inputs:", file=sys.stderr)
        for name, why in list(self.reasons.items())[:MOST_REASONS]:
            print(f"  {why if shown(name) in why else f'{shown(name)}: {why}'}", file=sys.stderr)
        more = len(self.reasons) - MOST_REASONS
        if more > 0:
            print(f"  and {more} more", file=sys.stderr)
        return SOME_INPUTS_FAILED
