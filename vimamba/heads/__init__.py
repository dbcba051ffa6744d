"""Segmentation heads: they see the channels and strides of a pyramid, never what made it."""

from vimamba.heads.fcn import FCNHead
from vimamba.heads.fpn import FPNHead
from vimamba.heads.registry import find_head, list_heads, register_head
from vimamba.heads.unet import AttentionUNetHead, UNetHead
from vimamba.heads.upernet import UPerNetHead
from vimamba.heads.vss import VSSHead

__all__ = [
    "AttentionUNetHead",
    "FCNHead",
    "FPNHead",
    "UNetHead",
    "UPerNetHead",
    "VSSHead",
    "find_head",
    "list_heads",
    "register_head",
]
