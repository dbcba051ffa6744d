"""Lightning data modules: one file per kind of data set."""

from vimamba.data.augmentation import Augmentation
from vimamba.data.classification import Catalogue, ClassificationData
from vimamba.data.csv_list import CSVList
from vimamba.data.errors import DataError
from vimamba.data.eurosat import EuroSAT
from vimamba.data.image_folder import ImageFolder
from vimamba.data.isic import ISIC
from vimamba.data.labels import Labels
from vimamba.data.mask_csv import MaskCSV
from vimamba.data.mask_folder import MaskFolder
from vimamba.data.medmnist import MedMNIST
from vimamba.data.nifti import NiftiSlices
from vimamba.data.paired_augmentation import PairedAugmentation
from vimamba.data.preprocessing import Intensity, Preprocessing
from vimamba.data.scene_folder import SceneFolder
from vimamba.data.segmentation import SegmentationData
from vimamba.data.synapse import Synapse

__all__ = [
    "ISIC",
    "Augmentation",
    "CSVList",
    "Catalogue",
    "ClassificationData",
    "DataError",
    "EuroSAT",
    "ImageFolder",
    "Intensity",
    "Labels",
    "MaskCSV",
    "MaskFolder",
    "MedMNIST",
    "NiftiSlices",
    "PairedAugmentation",
    "Preprocessing",
    "SceneFolder",
    "SegmentationData",
    "Synapse",
]
