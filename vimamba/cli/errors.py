"""The error a command line can cause, kept apart from bugs."""


class UsageError(ValueError):
    """An argument of the command cannot be used; the text names it."""
