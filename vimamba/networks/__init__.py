"""Whole networks by name: a folder for each task, and what all of them have in common."""

from vimamba.networks.feature_pyramid import FeaturePyramid
from vimamba.networks.identification import NetworkIdentity, match_networks
from vimamba.networks.loading import load_network
from vimamba.networks.network import Network
from vimamba.networks.registration import MambaMorph, Registrar, Registration, VMambaMorph
from vimamba.networks.registry import (
    create_network,
    find_network,
    list_networks,
    register_network,
)
from vimamba.networks.segmentation import (
    BackboneSegmenter,
    SegMamba,
    Segmenter,
    SwinUMamba,
    SwinUMambaD,
    UMamba,
    VMUNet,
    VSSUNet3d,
    create_segmenter,
    list_segmenters,
    load_segmenter,
)

__all__ = [
    "BackboneSegmenter",
    "FeaturePyramid",
    "MambaMorph",
    "Network",
    "NetworkIdentity",
    "Registrar",
    "Registration",
    "SegMamba",
    "Segmenter",
    "SwinUMamba",
    "SwinUMambaD",
    "UMamba",
    "VMUNet",
    "VMambaMorph",
    "VSSUNet3d",
    "create_network",
    "create_segmenter",
    "find_network",
    "list_networks",
    "list_segmenters",
    "load_network",
    "load_segmenter",
    "match_networks",
    "register_network",
]
