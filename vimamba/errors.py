"""The one base of errors that are the user's to mend, as opposed to bugs."""


class VimambaError(ValueError):
    """Something that was given cannot be used; the message names it and says what can.

    The command prints the text in one line and ends with exit code 2. Each part of the library
    has a class of its own below this one.
    """


class WriteError(VimambaError):
    """A file or folder cannot be written: a full disk, no permission, something in the way."""


class UsageError(VimambaError):
    """An argument of the command cannot be used; the message names it."""
