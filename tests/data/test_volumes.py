import struct

import h5py
import nibabel
import numpy as np
import pytest
from nibabel import orientations

from vimamba.data import DataError, Intensity, Labels, NiftiSlices, Synapse
from vimamba.data.masked.nifti import cut_volume
from vimamba.data.splits import write_split
from vimamba.data.volume_files import open_volume, to_stored_axes, volume_limits

RNG = np.random.default_rng(0)


def write(path, lps, axcodes="LPS", spacing=(0.5, 1.0, 3.0)):
    """Write an array given in (left, posterior, superior) order, stored along other axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    image = nibabel.Nifti1Image(lps, affine)
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(axcodes)
    )
    nibabel.save(image.as_reoriented(turn), path)
    return path


def is_mapped(values):
    """Whether an array maps a file instead of holding its values."""
    while values is not None and not isinstance(values, np.memmap):
        values = getattr(values, "base", None)
    return values is not None


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "ASR", "SPL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_look_the_same_however_they_are_stored(tmp_path, axcodes, ending):
    lps = RNG.integers(-1000, 1000, (4, 5, 6), dtype=np.int16)
    path = write(tmp_path / f"a{ending}", lps, axcodes)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.stored, lps)
    assert volume.spacing == pytest.approx((0.5, 1.0, 3.0))
    stored = np.asarray(nibabel.load(path).dataobj)
    np.testing.assert_array_equal(to_stored_axes(volume, lps), stored)
    assert is_mapped(volume.stored) == (ending == ".nii")


def make_cases(root, names=("a", "b", "c", "d"), folders=("images", "masks"), axcodes="RAS"):
    for name in names:
        image = RNG.integers(-1000, 1000, (8, 10, 6)).astype(np.int16)
        mask = np.zeros((8, 10, 6), dtype=np.uint8)
        mask[2:5, 3:7, 2:4] = 1
        mask[5:7, 3:7, 3:5] = 2
        write(root / folders[0] / f"{name}.nii.gz", image, axcodes)
        write(root / folders[1] / f"{name}.nii.gz", mask, axcodes)
    return root


def test_volumes_are_cut_into_slices_and_divided_by_case(tmp_path):
    root = make_cases(tmp_path)
    window = Intensity(window=(-500, 500))
    data = NiftiSlices(str(root), intensity=window, img_size=16, augmentation="medical")
    data.check()
    assert {k: len(v) for k, v in data.catalogue.splits.items()} == {
        "train": 12, "val": 6, "test": 6,
    }  # fmt: skip
    assert data.num_classes == 3
    assert data.count("train").tolist()[1:] == [2 * 24, 2 * 16]
    image, mask, case, spacing = data.dataset("val")[3]
    assert image.shape == (1, 16, 16)
    assert mask.shape == (10, 8)  # rows run from front to back
    # upright: row 3 is posterior index 3, column 2 is left index 2
    assert (mask[3:7, 2:5] == 1).all()
    assert (mask[3:7, 5:7] == 2).all()
    assert spacing == pytest.approx((3.0, 1.0, 0.5))
    assert case.endswith(".nii.gz")


def test_values_are_windowed_and_scaled_as_the_file_says(tmp_path):
    stored = np.arange(8, dtype=np.int16).reshape(2, 2, 2) * 100
    image = nibabel.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1]))
    image.header.set_slope_inter(2, -1000)
    image.header.set_data_dtype(np.int16)
    (tmp_path / "images").mkdir()
    nibabel.save(image, tmp_path / "images" / "a.nii")
    values = np.asarray(nibabel.load(tmp_path / "images" / "a.nii").dataobj)
    write(tmp_path / "masks" / "a.nii", np.ones((2, 2, 2), dtype=np.uint8), spacing=(1, 1, 1))
    data = NiftiSlices(str(tmp_path), intensity=Intensity(window=(-1000, 400)), labels=Labels(
        classes=["a", "b"]), val_fraction=0, test_fraction=0)  # fmt: skip
    item = data.catalogue.splits["train"][1]
    expected = ((values[:, :, 1].T + 1000) / 1400).clip(0, 1)
    np.testing.assert_allclose(data.preprocessing.pixels(item)[..., 0], expected, atol=1e-6)


def test_percentiles_are_those_of_the_volume(tmp_path):
    root = make_cases(tmp_path, ("a",))
    data = NiftiSlices(
        str(root), intensity=Intensity(percentiles=(0, 100), zscore=True), img_size=8,
        val_fraction=0, test_fraction=0,
    )  # fmt: skip
    volume = open_volume(root / "images" / "a.nii.gz").stored.astype(float)
    item = data.catalogue.splits["train"][2]
    expected = (volume[:, :, 2].T - volume.min()) / (volume.max() - volume.min())
    pixels = data.preprocessing.pixels(item)
    np.testing.assert_allclose(pixels[..., 0], expected, atol=1e-6)
    tensor = data.preprocessing.image(item)
    assert tensor.mean().item() == pytest.approx(0, abs=1e-5)
    assert tensor.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_the_layout_of_nnunet_with_two_channels(tmp_path):
    make_cases(tmp_path, ("p_01", "p_02", "p_03"), ("imagesTr", "labelsTr"))
    make_cases(tmp_path, ("p_04",), ("imagesTs", "labelsTs"))
    for folder in ("imagesTr", "imagesTs"):
        for path in [*(tmp_path / folder).iterdir()]:
            name = path.name.removesuffix(".nii.gz")
            path.rename(path.with_name(f"{name}_0000.nii.gz"))
            write(path.with_name(f"{name}_0001.nii.gz"), np.ones((8, 10, 6), np.float32), "RAS")
    data = NiftiSlices(str(tmp_path), in_chans=2, val_fraction=0.34, intensity=Intensity(
        window=(0, 1)), img_size=8, labeled_only=True)  # fmt: skip
    data.check()
    image = data.dataset("test")[0][0]
    assert image.shape == (2, 8, 8)
    assert {k: len(v) for k, v in data.catalogue.splits.items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }
    assert data.catalogue.splits["val"][0].name.endswith("_0000.nii.gz[0]")


def test_trouble_with_volumes_is_named(tmp_path):
    root = make_cases(tmp_path / "x", ("a", "b"))
    write(root / "masks" / "a.nii.gz", np.zeros((8, 10, 5), np.uint8))
    with pytest.raises(
        DataError, match=r"masks/a.nii.gz \(8 x 10 x 5 voxels .* is not on the grid"
    ):
        NiftiSlices(str(root)).check()
    root = make_cases(tmp_path / "y", ("a", "b"))
    (root / "images" / "b.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b.nii.gz cannot be read"):
        NiftiSlices(str(root)).check()
    (root / "images" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"masks in .* without an image in .*: b$"):
        NiftiSlices(str(root)).check()
    root = make_cases(tmp_path / "z", ("a", "b", "c"))
    data = NiftiSlices(str(root), img_size=8, intensity=Intensity(ranges=[]))
    with pytest.raises(DataError, match=r"set black and white with data.intensity.window"):
        data.dataset("train")[0]


@pytest.fixture
def synapse(tmp_path):
    def arrays(shape):
        return {
            "image": RNG.random(shape).astype(np.float32),
            "label": RNG.integers(0, 9, shape).astype(np.float32),
        }

    (tmp_path / "train_npz").mkdir()
    (tmp_path / "test_vol_h5").mkdir()
    for case in (5, 6, 7):
        for place in range(4):
            path = tmp_path / "train_npz" / f"case{case:04}_slice{place:03}.npz"
            np.savez(path, **arrays((20, 24)))
    with h5py.File(tmp_path / "test_vol_h5" / "case0001.npy.h5", "w") as file:
        for name, values in arrays((3, 20, 24)).items():
            file[name] = values
    return tmp_path


def test_synapse_keeps_cases_together_and_its_test_volumes_apart(synapse):
    data = Synapse(str(synapse), img_size=16, val_fraction=0.3)
    data.check()
    splits = data.catalogue.splits
    assert {k: len(v) for k, v in splits.items()} == {"train": 8, "val": 4, "test": 3}
    assert len({item.case for item in splits["val"]}) == 1
    assert {item.case for item in splits["test"]} == {"case0001"}
    assert data.class_names[5] == "liver"
    image, mask, case, spacing = data.dataset("test")[1]
    assert image.shape == (1, 16, 16)
    assert mask.shape == (20, 24)
    assert (case, len(spacing)) == ("case0001", 3)


def test_a_slice_that_a_list_names_must_be_there(synapse):
    (synapse / "lists" / "lists_Synapse").mkdir(parents=True)
    (synapse / "lists" / "lists_Synapse" / "train.txt").write_text("case0005_slice000\ncase0009_x")
    with pytest.raises(DataError, match=r"slice .*case0009_x\.npz does not exist"):
        Synapse(str(synapse), val_fraction=0.5).check()


def test_axes_of_one_are_no_channels_and_real_channels_are_counted(tmp_path):
    root = make_cases(tmp_path / "x")
    for path in (root / "masks").iterdir():
        stored = nibabel.load(path)
        values = np.asarray(stored.dataobj)[..., None]
        nibabel.save(nibabel.Nifti1Image(values, stored.affine), path)
    data = NiftiSlices(str(root), intensity=Intensity(window=(-500, 500)))
    data.check()
    assert data.num_classes == 3
    image = root / "images" / "b.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 10, 6, 4), np.float32), np.eye(4)), image)
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((8, 10, 6), np.uint8), np.eye(4)), root / "masks" / "b.nii.gz"
    )
    with pytest.raises(DataError, match=r"volume .*b.nii.gz has 4 bands, in_chans=1"):
        NiftiSlices(str(root)).prepare_data()
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((8, 10, 6, 3), np.uint8), np.eye(4)),
        root / "masks" / "b.nii.gz",
    )
    with pytest.raises(DataError, match=r"mask .*b.nii.gz has the shape .* one class per voxel"):
        cut_volume([image], root / "masks" / "b.nii.gz", "axial", root)


@pytest.mark.parametrize(
    ("slope", "intercept", "scale"),
    [(-1, 3, (-1, 3)), (2, -5, (2, -5)), (0, 7, (1, 0)), (np.nan, 0, (1, 0))],
)
def test_values_and_their_ends_follow_the_slope(tmp_path, slope, intercept, scale):
    stored = np.arange(8 * 8 * 4, dtype=np.int16).reshape(8, 8, 4)
    path = write(tmp_path / "a.nii", stored)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", slope, intercept)
    path.write_bytes(bytes(content))
    values = stored * float(scale[0]) + scale[1]
    low, high = volume_limits((path,), (0.5, 99.5))
    np.testing.assert_allclose([low[0], high[0]], np.percentile(values, (0.5, 99.5)), rtol=1e-5)
    item = cut_volume([path], None, "axial", tmp_path)[1]
    np.testing.assert_allclose(item.image()[..., 0], values[:, :, 1].T)


def test_a_volume_of_probabilities_is_no_mask(tmp_path):
    root = make_cases(tmp_path)
    write(root / "masks" / "b.nii.gz", RNG.random((8, 10, 6)).astype(np.float32), "RAS")
    with pytest.raises(DataError, match=r"mask masks/b.nii.gz\[0\] holds fractions such as 0"):
        NiftiSlices(str(root)).check()


def test_volumes_are_counted_and_ignored_files_reported(tmp_path):
    make_cases(tmp_path, ("p1_a", "p1_b", "p2_a", "p3_a"), ("imagesTr", "labelsTr"))
    make_cases(tmp_path, ("t1", "t2"), ("imagesTs", "nothing"))
    (tmp_path / "imagesTr" / "readme.txt").touch()
    (tmp_path / "imagesTr" / "p9").mkdir()
    data = NiftiSlices(str(tmp_path), group_pattern=r"(p\d)_", test_fraction=0)
    assert data.tallies()["groups"] == {"train": 2, "val": 1}
    assert sum(data.tallies()["volumes"].values()) == 4
    said = " ".join(data.notes())
    assert "imagesTs: 2 images without masks, not scored" in said
    assert "1 folder (imagesTr/p9), 1 .txt (imagesTr/readme.txt)" in said


def test_two_files_of_one_channel_are_refused(tmp_path):
    root = make_cases(tmp_path)
    write(root / "images" / "a.nii", np.zeros((8, 10, 6), np.int16), "RAS")
    with pytest.raises(DataError, match=r"a\.nii and .*a\.nii\.gz have the same name"):
        NiftiSlices(str(root)).prepare_data()


def test_cases_have_the_same_channels(tmp_path):
    root = make_cases(tmp_path, ("a", "b"), ("imagesTr", "labelsTr"))
    for name, channel in (("a", "0000"), ("b", "0001")):
        path = root / "imagesTr" / f"{name}.nii.gz"
        path.rename(path.with_name(f"{name}_{channel}.nii.gz"))
    with pytest.raises(DataError, match=r"a has the channels \['0000'\], b has \['0001'\]"):
        NiftiSlices(str(root)).prepare_data()


def test_synapse_goes_on_with_the_split_it_wrote(synapse, tmp_path):
    data = Synapse(str(synapse), val_fraction=0.3)
    write_split(tmp_path / "split.csv", data.catalogue.splits, data.class_names)
    again = Synapse(str(synapse), split_csv=str(tmp_path / "split.csv"), seed=5)
    for split in ("train", "val", "test"):
        assert again.catalogue.splits[split] == data.catalogue.splits[split]
