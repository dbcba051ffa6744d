"""Versions of other packages with which numbers and behaviors in the tests were determined.

`make test` installs the current versions from PyPI. If a test checks what another package does with
the library rather than what the library does, a newer or older version of that package may change
the result, which is not a fault of the library.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version


def outside(package: str, low: str, high: str) -> bool:
    """Whether the installed version is not between `low` and `high`.x, inclusive."""
    try:
        installed = Version(version(package)).release
    except PackageNotFoundError:
        return True
    first, last = Version(low).release, Version(high).release
    return not first <= installed[: len(first)] or not installed[: len(last)] <= last
