"""Backbones, one file per family. Importing this package registers them all with timm."""

from vimamba.models.adventurer import Adventurer
from vimamba.models.efficientvmamba import EfficientVMamba
from vimamba.models.groupmamba import GroupMamba
from vimamba.models.localvim import LocalVim
from vimamba.models.localvmamba import LocalVMamba
from vimamba.models.mamband import MambaND
from vimamba.models.mambar import MambaReg
from vimamba.models.medmamba import MedMamba
from vimamba.models.plainmamba import PlainMamba
from vimamba.models.videomamba import VideoMamba
from vimamba.models.vim import VisionMamba
from vimamba.models.vimf import VimF
from vimamba.models.vmamba import VMamba

__all__ = [
    "Adventurer",
    "EfficientVMamba",
    "GroupMamba",
    "LocalVMamba",
    "LocalVim",
    "MambaND",
    "MambaReg",
    "MedMamba",
    "PlainMamba",
    "VMamba",
    "VideoMamba",
    "VimF",
    "VisionMamba",
]
