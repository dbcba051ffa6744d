"""Errors of explanations caused by the user."""

from vimamba.errors import VimambaError


class ExplainError(VimambaError):
    """A model, image or option that cannot be explained; the message says what can be."""
