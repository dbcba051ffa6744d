"""Mixers and blocks that two or more families share."""

from vimamba.layers.cells import crop, pad_to_cells
from vimamba.layers.drop_path import drop_path_rates
from vimamba.layers.mamba import MambaMixer
from vimamba.layers.resize import resize
from vimamba.layers.simple_pyramid import SimplePyramid
from vimamba.layers.ss2d import SS2D, SSD2D, ScanMixer
from vimamba.layers.ssm import scan_parameters
from vimamba.layers.tokens import PatchEmbed, RotaryEmbed, insert_class_token, to_pair
from vimamba.layers.vss import (
    GATED_SS2D,
    PatchExpand,
    PatchMerging,
    PatchStem,
    Stage,
    VSSBlock,
    init_vss_,
)

__all__ = [
    "GATED_SS2D",
    "SS2D",
    "SSD2D",
    "MambaMixer",
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "PatchStem",
    "RotaryEmbed",
    "ScanMixer",
    "SimplePyramid",
    "Stage",
    "VSSBlock",
    "crop",
    "drop_path_rates",
    "init_vss_",
    "insert_class_token",
    "pad_to_cells",
    "resize",
    "scan_parameters",
    "to_pair",
]
