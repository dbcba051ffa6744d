"""Error caused by a user's data, as opposed to bugs."""

from vimamba.errors import VimambaError


class DataError(VimambaError):
    """The data on disk or an argument describing it is invalid; the message says why."""
