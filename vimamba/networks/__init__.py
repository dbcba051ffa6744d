"""Whole segmentation networks, and a head on any timm backbone."""

from vimamba.networks.factory import create_segmenter, load_segmenter
from vimamba.networks.registry import list_segmenters, register_segmenter
from vimamba.networks.segmenter import Segmenter
from vimamba.networks.swin_umamba import SwinUMamba, SwinUMambaD
from vimamba.networks.umamba import UMamba
from vimamba.networks.vm_unet import VMUNet

__all__ = [
    "Segmenter",
    "SwinUMamba",
    "SwinUMambaD",
    "UMamba",
    "VMUNet",
    "create_segmenter",
    "list_segmenters",
    "load_segmenter",
    "register_segmenter",
]
