"""Versions of other packages that numbers and behaviors in the tests were found with.

`make test` takes what PyPI offers that day. Where a test says what another package does with the
library rather than what the library does, a package newer or older than those it was written with
may change the outcome, and that is no fault of the library.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version


def outside(package: str, low: str, high: str) -> bool:
    """Whether the package that is installed is none from `low` up to and including `high`.x."""
    try:
        installed = Version(version(package)).release
    except PackageNotFoundError:
        return True
    first, last = Version(low).release, Version(high).release
    return not first <= installed[: len(first)] or not installed[: len(last)] <= last
