"""Segmentation networks: whole ones, and a head on any timm backbone."""

from vimamba.networks.segmentation.factory import create_segmenter, list_segmenters, load_segmenter
from vimamba.networks.segmentation.mamba_hsi import MambaHSI
from vimamba.networks.segmentation.on_backbone import BackboneSegmenter
from vimamba.networks.segmentation.rs_mamba import RSMSS
from vimamba.networks.segmentation.segmamba import SegMamba
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.networks.segmentation.swin_umamba import SwinUMamba, SwinUMambaD
from vimamba.networks.segmentation.umamba import UMamba
from vimamba.networks.segmentation.vm_unet import VMUNet
from vimamba.networks.segmentation.vss_unet import VSSUNet3d

__all__ = [
    "RSMSS",
    "BackboneSegmenter",
    "MambaHSI",
    "SegMamba",
    "Segmenter",
    "SwinUMamba",
    "SwinUMambaD",
    "UMamba",
    "VMUNet",
    "VSSUNet3d",
    "create_segmenter",
    "list_segmenters",
    "load_segmenter",
]
