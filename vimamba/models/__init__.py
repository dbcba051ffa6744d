"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.vim import VisionMamba
from vimamba.models.vmamba import VMamba

__all__ = ["VMamba", "VisionMamba"]
