"""Skipped files and oddities of a data set, collected for the summary before training."""

from collections.abc import Iterable
from pathlib import Path

# kinds of skipped things that take a plural s
COUNTED = ("file", "folder", "link")


class Remarks:
    """Lines for the summary of a data set."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}
        self._left_out: dict[str, list[str]] = {}

    def say(self, line: str) -> None:
        """Add a line, unless it is already there."""
        self._said[line] = None

    def leave_out(self, kind: str, path: Path) -> None:
        """Count a skipped file or folder.

        Args:
            kind: Its kind, as printed after a number: ".txt", "broken link".
            path: Path to give as an example.
        """
        self._left_out.setdefault(kind, []).append(path.as_posix())

    def lines(self) -> list[str]:
        """The lines, then `left out: 3 .txt (notes.txt, ...), 1 broken link (a.png)`."""
        parts = []
        for kind, names in self._left_out.items():
            plural = "s" if len(names) > 1 and kind.endswith(COUNTED) else ""
            more = ", ..." if len(names) > 1 else ""
            parts.append(f"{len(names)} {kind}{plural} ({names[0]}{more})")
        return [*self._said, *([f"left out: {', '.join(parts)}"] if parts else [])]


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of some names, in order."""
    ordered = sorted(names)
    more = len(ordered) - most
    return ", ".join(ordered[:most]) + (f" and {more} more" if more > 0 else "")
