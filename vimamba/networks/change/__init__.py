"""Change-detection networks: whole ones, and a head on any timm backbone."""

from vimamba.networks.change.change_mamba import MambaBCD, MambaBDA, MambaSCD
from vimamba.networks.change.detector import ChangeDetector, DamageLogits, SemanticLogits
from vimamba.networks.change.factory import (
    create_change_detector,
    list_change_detectors,
    load_change_detector,
)
from vimamba.networks.change.on_backbone import BackboneChangeDetector
from vimamba.networks.change.rs_mamba import RSMCD

__all__ = [
    "RSMCD",
    "BackboneChangeDetector",
    "ChangeDetector",
    "DamageLogits",
    "MambaBCD",
    "MambaBDA",
    "MambaSCD",
    "SemanticLogits",
    "create_change_detector",
    "list_change_detectors",
    "load_change_detector",
]
