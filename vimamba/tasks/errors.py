"""The error a task's arguments can cause, kept apart from bugs."""

from vimamba.errors import VimambaError


class TaskError(VimambaError):
    """An argument of a task cannot be used; the text names it and says what can."""


class NotFiniteError(TaskError):
    """A loss, a gradient, a weight or an output is infinite or no number; the text says where."""
