"""The error a user's data can cause, kept apart from bugs."""


class DataError(ValueError):
    """The data on disk or an argument that describes it cannot be used; the text says why."""
