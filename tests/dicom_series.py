"""DICOM series of known geometry, written with pydicom."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
# a plane rotated about two axes
_TILT, _YAW = np.deg2rad(20), np.deg2rad(-8)
OBLIQUE = (
    (np.cos(_YAW), np.sin(_YAW), 0.0),
    tuple(np.cos(_TILT) * np.asarray([-np.sin(_YAW), np.cos(_YAW), 0]) + [0, 0, np.sin(_TILT)]),
)
FIRST = (-31.5, -12.25, 7.5)


def write_series(
    folder: Path, volume, *, plane=AXIAL, step=(0.0, 0.0, 3.0), spacing=(1.0, 0.9), number=1
) -> list[Path]:
    """One file per slice; neither names nor instance numbers are in the order of the slices.

    Args:
        folder: Where the files go.
        volume: (slices, rows, columns) int16, the values that the files represent.
        plane: Directions of a row and of a column, towards left, back and head.
        step: From slice to slice, millimeters to the left, the back and the head.
        spacing: Millimeters between rows and between columns.
        number: Number of the series.

    Returns:
        The files in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[str(folder), str(number)])
    names = np.random.default_rng(number).permutation(len(volume))
    paths = [folder / f"IM{name:03}" for name in names]
    for place, (pixels, name) in enumerate(zip(volume, names, strict=True)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(str(paths[place]), {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesInstanceUID = "CT", uid
        data.SeriesNumber, data.SeriesDescription = number, "thorax/soft"
        data.InstanceNumber = int(name) + 1
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelSpacing = [f"{value:.8g}" for value in spacing]
        data.ImageOrientationPatient = [f"{value:.8f}" for value in (*plane[0], *plane[1])]
        position = np.asarray(FIRST) + place * np.asarray(step)
        data.ImagePositionPatient = [f"{value:.8f}" for value in position]
        data.PixelData = (pixels + 1024).astype(np.uint16).tobytes()
        data.save_as(paths[place], enforce_file_format=True)
    return paths


def change(path: Path, **values) -> None:
    """Set attributes of a file; None removes one."""
    data = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)
