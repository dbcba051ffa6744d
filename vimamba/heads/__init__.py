"""Segmentation heads: they see the channels and strides of a pyramid, never what made it."""

from collections.abc import Callable

from torch import nn

from vimamba.heads.fcn import FCNHead
from vimamba.heads.upernet import UPerNetHead

__all__ = ["FCNHead", "UPerNetHead", "find_head", "list_heads"]

_HEADS: dict[str, Callable[..., nn.Module]] = {"upernet": UPerNetHead}


def list_heads() -> list[str]:
    """Names of the heads that `vimamba.create_segmenter` puts on a backbone."""
    return sorted(_HEADS)


def find_head(name: str) -> Callable[..., nn.Module]:
    """The head of this name.

    Raises:
        ValueError: There is none.
    """
    if name not in _HEADS:
        raise ValueError(f"head={name!r} is unknown; choose from {list_heads()}")
    return _HEADS[name]
