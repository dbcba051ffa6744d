"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.medmamba import MedMamba
from vimamba.models.mlla import MLLA
from vimamba.models.msvmamba import MSVMamba
from vimamba.models.spatialmamba import SpatialMamba
from vimamba.models.vim import VisionMamba
from vimamba.models.vmamba import VMamba
from vimamba.models.vssd import VSSD

__all__ = ["MLLA", "VSSD", "MSVMamba", "MedMamba", "SpatialMamba", "VMamba", "VisionMamba"]
