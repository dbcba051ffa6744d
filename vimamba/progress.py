"""Progress of long operations: bars in a terminal, a line per minute elsewhere."""

import time

from tqdm import tqdm

from vimamba.console import is_terminal, say

# seconds between two lines
PAUSE = 60


class Progress:
    """Counts items, and the parts of the current one.

    Args:
        total: Number of items.
        unit: Name of an item, such as "image".
    """

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.quiet = not is_terminal()
        self.bar = tqdm(total=total, unit=unit, disable=self.quiet)
        self.inner: tqdm | None = None
        self.last_shown = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count finished items."""
        self.done += count
        self.bar.update(count)
        self._close_inner()
        self._report("")

    def part(self, done: int, total: int, unit: str) -> None:
        """Report how many parts of the current item are done.

        Args:
            done: Number of parts done.
            total: Number of its parts.
            unit: Name of a part, such as "window".
        """
        if total <= 1:
            return
        if self.quiet:
            self._report(f", {unit} {done} of {total} of the next")
            return
        if self.inner is None or self.inner.n >= done or self.inner.total != total:
            self._close_inner()
            self.inner = tqdm(total=total, unit=unit, leave=False)
        self.inner.update(done - self.inner.n)

    def close(self) -> None:
        """Close the bar in its current state."""
        self._close_inner()
        self.bar.close()

    def _close_inner(self) -> None:
        if self.inner is not None:
            self.inner.close()
            self.inner = None

    def _report(self, more: str) -> None:
        now = time.monotonic()
        if self.quiet and now - self.last_shown >= PAUSE:
            self.last_shown = now
            say(f"{self.done} of {self.total} {self.unit}s done{more}")
