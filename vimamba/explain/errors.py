"""What cannot be explained, as the user's errors."""

from vimamba.errors import VimambaError


class ExplainError(VimambaError):
    """A model, an image or a choice that an explanation cannot use; the text says what can be."""
