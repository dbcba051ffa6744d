"""Vision-Mamba models as timm models, with pluggable scan orders."""

from timm import create_model, list_models

from vimamba import models  # noqa: F401  importing registers every model with timm
from vimamba.checkpoints import identify
from vimamba.heads import list_fusions, list_heads, register_fusion, register_head
from vimamba.hub import push_to_hub, save_pretrained
from vimamba.networks import (
    create_change_detector,
    create_network,
    create_segmenter,
    list_change_detectors,
    list_networks,
    list_segmenters,
    load_change_detector,
    load_network,
    load_segmenter,
    register_network,
)
from vimamba.scan_orders import (
    list_scan_orders,
    register_scan_order,
    register_scan_table,
    scan_paths,
)

__version__ = "0.1.0"

__all__ = [
    "create_change_detector",
    "create_model",
    "create_network",
    "create_segmenter",
    "identify",
    "list_change_detectors",
    "list_fusions",
    "list_heads",
    "list_models",
    "list_networks",
    "list_scan_orders",
    "list_segmenters",
    "load_change_detector",
    "load_network",
    "load_segmenter",
    "push_to_hub",
    "register_fusion",
    "register_head",
    "register_network",
    "register_scan_order",
    "register_scan_table",
    "save_pretrained",
    "scan_paths",
]
