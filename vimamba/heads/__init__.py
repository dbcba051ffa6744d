"""Segmentation heads: they only see the channels and strides of a pyramid, not its backbone."""

from vimamba.heads.fcn import FCNHead
from vimamba.heads.fpn import FPNHead
from vimamba.heads.fusion import (
    ConcatenationFusion,
    DifferenceFusion,
    ScanFusion,
    find_fusion,
    list_fusions,
    register_fusion,
)
from vimamba.heads.registry import find_head, list_heads, register_head
from vimamba.heads.top_down import TopDownHead
from vimamba.heads.unet import AttentionUNetHead, UNetHead
from vimamba.heads.upernet import UPerNetHead
from vimamba.heads.vss import VSSHead

__all__ = [
    "AttentionUNetHead",
    "ConcatenationFusion",
    "DifferenceFusion",
    "FCNHead",
    "FPNHead",
    "ScanFusion",
    "TopDownHead",
    "UNetHead",
    "UPerNetHead",
    "VSSHead",
    "find_fusion",
    "find_head",
    "list_fusions",
    "list_heads",
    "register_fusion",
    "register_head",
]
