"""The former location of `UsageError`."""

from vimamba.errors import UsageError

__all__ = ["UsageError"]
