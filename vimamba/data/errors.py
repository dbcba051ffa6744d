"""The error a user's data can cause, kept apart from bugs."""

from vimamba.errors import VimambaError


class DataError(VimambaError):
    """The data on disk or an argument that describes it cannot be used; the text says why."""
