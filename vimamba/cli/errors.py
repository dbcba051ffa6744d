"""The error a command line can cause, kept apart from bugs."""

from vimamba.errors import VimambaError


class UsageError(VimambaError):
    """An argument of the command cannot be used; the text names it."""
