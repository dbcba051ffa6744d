"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.mambavision import MambaVision
from vimamba.models.medmamba import MedMamba
from vimamba.models.mobilemamba import MobileMamba
from vimamba.models.vim import VisionMamba
from vimamba.models.vmamba import VMamba

__all__ = ["MambaVision", "MedMamba", "MobileMamba", "VMamba", "VisionMamba"]
