"""Mixers and blocks that two or more families share."""

from vimamba.layers.mamba import MambaMixer
from vimamba.layers.pyramid import SimplePyramid
from vimamba.layers.ss2d import SS2D, SSD2D, ScanMixer
from vimamba.layers.tokens import PatchEmbed, RotaryEmbed, insert_class_token, to_pair

__all__ = [
    "SS2D",
    "SSD2D",
    "MambaMixer",
    "PatchEmbed",
    "RotaryEmbed",
    "ScanMixer",
    "SimplePyramid",
    "insert_class_token",
    "to_pair",
]
