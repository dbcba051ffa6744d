"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.damamba import DAMamba
from vimamba.models.mambavision import MambaVision
from vimamba.models.medmamba import MedMamba
from vimamba.models.mobilemamba import MobileMamba
from vimamba.models.tinyvim import TinyViM
from vimamba.models.vim import VisionMamba
from vimamba.models.vmamba import VMamba

__all__ = ["DAMamba", "MambaVision", "MedMamba", "MobileMamba", "TinyViM", "VMamba", "VisionMamba"]
