"""Segmentation heads: they see the channels and strides of a pyramid, never what made it."""

from collections.abc import Callable
from functools import partial

from torch import nn

from vimamba.heads.fcn import FCNHead
from vimamba.heads.fpn import FPNHead
from vimamba.heads.unet import UNetHead
from vimamba.heads.upernet import UPerNetHead
from vimamba.heads.vss import VSSHead

__all__ = [
    "FCNHead",
    "FPNHead",
    "UNetHead",
    "UPerNetHead",
    "VSSHead",
    "find_head",
    "list_heads",
]

_HEADS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "upernet": (UPerNetHead, 4),
    "fpn": (FPNHead, 4),
    "unet": (UNetHead, 2),
    "attention_unet": (partial(UNetHead, attention=True), 2),
    "vss_unet": (VSSHead, 4),
}


def list_heads() -> list[str]:
    """Names of the heads that `vimamba.create_segmenter` puts on a backbone."""
    return sorted(_HEADS)


def find_head(name: str) -> tuple[Callable[..., nn.Module], int]:
    """The head of this name, and the stride of the finest level that it reads.

    Raises:
        ValueError: There is none.
    """
    if name not in _HEADS:
        raise ValueError(f"head={name!r} is unknown; choose from {list_heads()}")
    return _HEADS[name]
