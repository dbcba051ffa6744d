"""DICOM series are volumes with the geometry given by their slices."""

import numpy as np
import pytest

from tests.dicom_series import AXIAL, FIRST, OBLIQUE, change, write_series
from vimamba.data.dicom import list_series
from vimamba.data.errors import DataError
from vimamba.data.volume_files import open_volume

ROW, COLUMN = map(np.asarray, OBLIQUE)
STEPS = {
    "upwards": (AXIAL, (0.0, 0.0, 3.0)),
    "downwards": (AXIAL, (0.0, 0.0, -3.0)),
    "oblique": (OBLIQUE, tuple(2.5 * np.cross(ROW, COLUMN))),
    # the slices are oblique, and the table moves along the patient
    "tilted gantry": (OBLIQUE, (0.0, 0.0, 2.5)),
}


def values(seed=0, shape=(7, 6, 5)):
    return np.random.default_rng(seed).integers(-1000, 3000, shape).astype(np.int16)


@pytest.mark.parametrize("name", STEPS)
def test_every_voxel_lies_where_its_slice_says(name, tmp_path):
    plane, step = STEPS[name]
    voxels = values()
    write_series(tmp_path, voxels, plane=plane, step=step)
    volume = open_volume(tmp_path / "IM003")
    assert volume.scale(volume.stored).shape == volume.grid.shape
    found = np.argwhere(np.ones(volume.grid.shape, bool))
    right_front_top = found @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]
    place = right_front_top * (-1, -1, 1)
    # the slice, row and column of the series at that position
    axes = np.stack([step, np.asarray(plane[1]) * 1.0, np.asarray(plane[0]) * 0.9], 1)
    index = np.linalg.solve(axes, (place - FIRST).T).T
    np.testing.assert_allclose(index, np.rint(index), atol=1e-4)
    expected = voxels[tuple(np.rint(index).astype(int).T)]
    np.testing.assert_array_equal(volume.scale(volume.stored).ravel(), expected)


@pytest.mark.parametrize("name", ["upwards", "downwards", "oblique"])
def test_itk_sees_the_same_volume(name, tmp_path):
    itk = pytest.importorskip("SimpleITK")
    plane, step = STEPS[name]
    write_series(tmp_path, values(), plane=plane, step=step)
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = reader.Execute()
    volume = open_volume(tmp_path / "IM000")
    for index in ((0, 0, 0), (4, 1, 2), (2, 5, 6)):
        place = volume.affine @ (*index, 1.0)
        expected = theirs.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(place[:3] * (-1, -1, 1), expected, atol=1e-5)


def test_series_in_one_folder_are_distinguished(tmp_path):
    write_series(tmp_path / "a", values(1), number=1)
    write_series(tmp_path / "b", values(2), number=2)
    for path in sorted((tmp_path / "b").iterdir()):
        path.rename(tmp_path / "a" / f"{path.name}.dcm")
    first, second = list_series(tmp_path / "a")
    assert (first.label, second.label) == ("1 thorax soft", "2 thorax soft")
    volume = open_volume(second.files[3])
    # with rows from front to back and slices from the feet upwards, as written
    np.testing.assert_array_equal(volume.scale(volume.stored).transpose(2, 1, 0), values(2))


def test_slices_of_their_own_scale_are_read_as_they_mean(tmp_path):
    change(write_series(tmp_path, values())[2], RescaleSlope=0.5)
    volume = open_volume(tmp_path / "IM000")
    found = volume.scale(volume.stored).transpose(2, 1, 0)
    np.testing.assert_array_equal(found[2], (values()[2] + 1024) * 0.5 - 1024)
    np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(values(), 2, 0))


def break_series(paths, how):
    """Damage the middle slice."""
    path = paths[3]
    if how == "missing":
        path.unlink()
    elif how == "twice":
        change(path, ImagePositionPatient=list(FIRST))
    elif how == "aside":
        change(path, ImagePositionPatient=[FIRST[0] + 5, FIRST[1], FIRST[2] + 9])
    elif how == "turned":
        change(path, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    elif how == "nowhere":
        change(path, ImagePositionPatient=None)
    elif how == "frames":
        change(path, NumberOfFrames=2)
    elif how == "colors":
        change(path, SamplesPerPixel=3)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "alone":
        for other in {*paths} - {path}:
            other.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "slices are missing"),
        ("twice", "have the same position"),
        ("aside", "5 mm off the line"),
        ("turned", "differ in ImageOrientationPatient"),
        ("nowhere", "ImagePositionPatient missing"),
        ("frames", "holds 2 slices; convert it"),
        ("colors", "holds colors"),
        ("truncated", "cannot be read"),
        ("alone", "the only slice"),
    ],
)
def test_a_broken_series_is_refused_with_the_file_named(how, words, tmp_path):
    break_series(write_series(tmp_path, values()), how)
    with pytest.raises(DataError, match=words) as caught:
        open_volume(next(tmp_path.iterdir()))
    assert "IM00" in str(caught.value)
