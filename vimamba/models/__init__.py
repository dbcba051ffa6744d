"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.efficientvmamba import EfficientVMamba
from vimamba.models.groupmamba import GroupMamba
from vimamba.models.localvim import LocalVim
from vimamba.models.localvmamba import LocalVMamba
from vimamba.models.mambar import MambaReg
from vimamba.models.medmamba import MedMamba
from vimamba.models.videomamba import VideoMamba
from vimamba.models.vim import VisionMamba
from vimamba.models.vimf import VimF
from vimamba.models.vmamba import VMamba

__all__ = [
    "EfficientVMamba",
    "GroupMamba",
    "LocalVMamba",
    "LocalVim",
    "MambaReg",
    "MedMamba",
    "VMamba",
    "VideoMamba",
    "VimF",
    "VisionMamba",
]
