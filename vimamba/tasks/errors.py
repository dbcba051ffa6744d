"""The error a task's arguments can cause, kept apart from bugs."""


class TaskError(ValueError):
    """An argument of a task cannot be used; the text names it and says what can."""
