"""The former location of `read_image`."""

from vimamba.data.pixels import read_image

__all__ = ["read_image"]
