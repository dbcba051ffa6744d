"""How far a long work is: bars in a terminal, a line a minute elsewhere."""

import time

from tqdm import tqdm

from vimamba.console import is_terminal, say

# seconds between two lines
PAUSE = 60


class Progress:
    """Counts things, and the parts of the one that is being worked on.

    Args:
        total: Number of things.
        unit: What one of them is, such as "image".
    """

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.quiet = not is_terminal()
        self.bar = tqdm(total=total, unit=unit, disable=self.quiet)
        self.inner: tqdm | None = None
        self.told = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Some more are done."""
        self.done += count
        self.bar.update(count)
        self._close_inner()
        self._tell("")

    def part(self, done: int, total: int, unit: str) -> None:
        """Tell how many parts of the present one are done.

        Args:
            done: Number of parts done.
            total: Number of its parts.
            unit: What a part is, such as "window".
        """
        if total <= 1:
            return
        if self.quiet:
            self._tell(f", {unit} {done} of {total} of the next")
            return
        if self.inner is None or self.inner.n >= done or self.inner.total != total:
            self._close_inner()
            self.inner = tqdm(total=total, unit=unit, leave=False)
        self.inner.update(done - self.inner.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._close_inner()
        self.bar.close()

    def _close_inner(self) -> None:
        if self.inner is not None:
            self.inner.close()
            self.inner = None

    def _tell(self, more: str) -> None:
        now = time.monotonic()
        if self.quiet and now - self.told >= PAUSE:
            self.told = now
            say(f"{self.done} of {self.total} {self.unit}s done{more}")
