"""The common base of errors that the user can fix, as opposed to bugs."""


class VimambaError(ValueError):
    """A given value is invalid; the message names it and says what is accepted.

    The command prints the message in one line and ends with exit code 2. Each part of the library
    has its own subclass.
    """


class WriteError(VimambaError):
    """A file or folder cannot be written: a full disk, missing permission, an existing file."""


class UsageError(VimambaError):
    """An argument of the command is invalid; the message names it."""
