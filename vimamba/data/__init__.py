"""Lightning data modules: one folder per kind of target, one file per kind of data set."""

from vimamba.data.augmentation import Augmentation
from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.labelled.classification import ClassificationData
from vimamba.data.labelled.csv_list import CSVList
from vimamba.data.labelled.eurosat import EuroSAT
from vimamba.data.labelled.image_folder import ImageFolder
from vimamba.data.labelled.medmnist import MedMNIST
from vimamba.data.masked.aerial import AerialFolder
from vimamba.data.masked.augmentation import MaskedAugmentation
from vimamba.data.masked.isic import ISIC
from vimamba.data.masked.labels import Labels
from vimamba.data.masked.mask_csv import MaskCSV
from vimamba.data.masked.mask_folder import MaskFolder
from vimamba.data.masked.nifti import NiftiSlices
from vimamba.data.masked.scene_folder import SceneFolder
from vimamba.data.masked.segmentation import SegmentationData
from vimamba.data.masked.synapse import Synapse
from vimamba.data.paired.case_folder import CaseFolder
from vimamba.data.paired.change_folder import ChangeFolder
from vimamba.data.paired.pair_csv import PairCSV
from vimamba.data.paired.registration import RegistrationData
from vimamba.data.preprocessing import Intensity, Preprocessing
from vimamba.data.volumes.augmentation import VolumeAugmentation
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.challenges import ACDC, BraTS
from vimamba.data.volumes.data import VolumeData
from vimamba.data.volumes.folders import VolumeFolder
from vimamba.data.volumes.preprocessing import VolumePreprocessing

__all__ = [
    "ACDC",
    "ISIC",
    "AerialFolder",
    "Augmentation",
    "BraTS",
    "CSVList",
    "CaseFolder",
    "Catalogue",
    "ChangeFolder",
    "ClassificationData",
    "DataError",
    "EuroSAT",
    "ImageFolder",
    "Intensity",
    "Labels",
    "MaskCSV",
    "MaskFolder",
    "MaskedAugmentation",
    "MedMNIST",
    "NiftiSlices",
    "PairCSV",
    "Preprocessing",
    "RegistrationData",
    "SceneFolder",
    "SegmentationData",
    "Synapse",
    "VolumeAugmentation",
    "VolumeCase",
    "VolumeData",
    "VolumeFolder",
    "VolumePreprocessing",
]
