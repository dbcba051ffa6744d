"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.efficientvmamba import EfficientVMamba
from vimamba.models.localvmamba import LocalVMamba
from vimamba.models.medmamba import MedMamba
from vimamba.models.vim import VisionMamba
from vimamba.models.vmamba import VMamba

__all__ = ["EfficientVMamba", "LocalVMamba", "MedMamba", "VMamba", "VisionMamba"]
