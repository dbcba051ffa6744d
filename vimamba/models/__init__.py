"""Backbones, one file per family. Importing this package registers them all with timm."""

from importlib.util import find_spec

from vimamba.models.a2mamba import A2Mamba
from vimamba.models.adventurer import Adventurer
from vimamba.models.arm import ARM
from vimamba.models.damamba import DAMamba
from vimamba.models.efficientvmamba import EfficientVMamba
from vimamba.models.groupmamba import GroupMamba
from vimamba.models.localvim import LocalVim
from vimamba.models.localvmamba import LocalVMamba
from vimamba.models.mamband import MambaND
from vimamba.models.mambar import MambaReg
from vimamba.models.mambatree import MambaTree
from vimamba.models.mambavision import MambaVision
from vimamba.models.medmamba import MedMamba
from vimamba.models.mlla import MLLA
from vimamba.models.mobilemamba import MobileMamba
from vimamba.models.msvmamba import MSVMamba
from vimamba.models.plainmamba import PlainMamba
from vimamba.models.rsmamba import RSMamba
from vimamba.models.spatialmamba import SpatialMamba
from vimamba.models.tinyvim import TinyViM
from vimamba.models.videomamba import VideoMamba
from vimamba.models.vim import VisionMamba
from vimamba.models.vimf import VimF
from vimamba.models.vmamba import VMamba
from vimamba.models.vssd import VSSD

if find_spec("timm.models.efficientvim"):  # later versions of timm have the models
    from vimamba.models import efficientvim as _efficientvim  # noqa: F401  tells their files

__all__ = [
    "ARM",
    "MLLA",
    "VSSD",
    "A2Mamba",
    "Adventurer",
    "DAMamba",
    "EfficientVMamba",
    "GroupMamba",
    "LocalVMamba",
    "LocalVim",
    "MSVMamba",
    "MambaND",
    "MambaReg",
    "MambaTree",
    "MambaVision",
    "MedMamba",
    "MobileMamba",
    "PlainMamba",
    "RSMamba",
    "SpatialMamba",
    "TinyViM",
    "VMamba",
    "VideoMamba",
    "VimF",
    "VisionMamba",
]
