"""Errors caused by a task's arguments, as opposed to bugs."""

from vimamba.errors import VimambaError


class TaskError(VimambaError):
    """An argument of a task is invalid; the message names it and says what is accepted."""


class NotFiniteError(TaskError):
    """A loss, gradient, weight or output is infinite or NaN; the message says where and when."""
