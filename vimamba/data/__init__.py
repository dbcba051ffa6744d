"""Lightning data modules: one file per kind of data set."""

from vimamba.data.augmentation import Augmentation
from vimamba.data.classification import Catalogue, ClassificationData
from vimamba.data.csv_list import CSVList
from vimamba.data.errors import DataError
from vimamba.data.eurosat import EuroSAT
from vimamba.data.image_folder import ImageFolder
from vimamba.data.medmnist import MedMNIST

__all__ = [
    "Augmentation",
    "CSVList",
    "Catalogue",
    "ClassificationData",
    "DataError",
    "EuroSAT",
    "ImageFolder",
    "MedMNIST",
]
