"""Whole networks by name: a folder for each task, and shared code."""

from vimamba.networks.change import (
    RSMCD,
    BackboneChangeDetector,
    ChangeDetector,
    DamageLogits,
    MambaBCD,
    MambaBDA,
    MambaSCD,
    SemanticLogits,
    create_change_detector,
    list_change_detectors,
    load_change_detector,
)
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
    RSMSS,
    BackboneSegmenter,
    MambaHSI,
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
    "RSMCD",
    "RSMSS",
    "BackboneChangeDetector",
    "BackboneSegmenter",
    "ChangeDetector",
    "DamageLogits",
    "FeaturePyramid",
    "MambaBCD",
    "MambaBDA",
    "MambaHSI",
    "MambaMorph",
    "MambaSCD",
    "Network",
    "NetworkIdentity",
    "Registrar",
    "Registration",
    "SegMamba",
    "Segmenter",
    "SemanticLogits",
    "SwinUMamba",
    "SwinUMambaD",
    "UMamba",
    "VMUNet",
    "VMambaMorph",
    "VSSUNet3d",
    "create_change_detector",
    "create_network",
    "create_segmenter",
    "find_network",
    "list_change_detectors",
    "list_networks",
    "list_segmenters",
    "load_change_detector",
    "load_network",
    "load_segmenter",
    "match_networks",
    "register_network",
]
