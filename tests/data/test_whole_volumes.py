import gzip
import json
import re
import struct

import numpy as np
import pytest
import torch

from tests.volumes import ORIENTATIONS, make_volume, store, write_brats, write_cases
from vimamba.data import ACDC, BraTS, DataError, VolumeAugmentation, VolumeFolder
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.planning import propose_patch, target_spacing
from vimamba.data.volumes.survey import SeenCase


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("volumes"))


def folder(root, **kwargs):
    return VolumeFolder(str(root), **{"workers": 0, "img_size": (8, 16, 16), **kwargs})


def test_a_case_is_the_same_in_every_orientation(tmp_path):
    image, mask = make_volume(0)
    for axes in ORIENTATIONS:
        store(tmp_path / f"{axes}.nii.gz", image, axes)
        store(tmp_path / f"{axes}_mask.nii.gz", mask, axes)
        paths = tmp_path / f"{axes}.nii.gz", tmp_path / f"{axes}_mask.nii.gz"
        case = VolumeCase((paths[0],), paths[1], tmp_path)
        np.testing.assert_array_equal(case.voxels()[..., 0], image)
        np.testing.assert_array_equal(case.mask(), mask)
        assert case.spacing == pytest.approx((3.0, 1.0, 0.9))


def test_patches_are_a_function_of_seed_epoch_and_index(root):
    data = folder(root)
    train = data.dataset("train", augmented=True)
    one, again = train[3, 5], data.dataset("train", augmented=True)[3, 5]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], train[4, 5][0])
    assert type(one[0]) is torch.Tensor
    assert one[0].shape == (1, 8, 16, 16)
    assert one[1].dtype == torch.uint8


def test_workers_change_nothing(root):
    batches = [[b.sum().item() for b in batch] for batch in folder(root).train_dataloader()]
    other = folder(root, workers=2).train_dataloader()
    assert [[b.sum().item() for b in batch] for batch in other] == batches


def test_patches_have_the_asked_share_of_foreground_and_are_cut_where_they_lie(root):
    plain = VolumeAugmentation(*[0.0] * 10)
    data = folder(root, foreground=1.0, augmentation=plain, patches=20, img_size=(4, 6, 6))
    train = data.dataset("train", augmented=True)
    masks = [train[0, index][1] for index in range(len(train))]
    assert all((mask > 0).any() for mask in masks)
    present = torch.stack([torch.tensor([(m == c).any() for c in (1, 2)]) for m in masks])
    assert present.float().mean(0).min() > 0.35
    # the values identify the class: 100 for the box, -80 for the ball
    for image, mask in (train[0, index] for index in range(20)):
        found = [image[0][mask == c].mean() for c in (2, 0, 1) if (mask == c).any()]
        assert found == sorted(found)


def test_a_volume_smaller_than_a_patch_is_padded_with_ignored_voxels(root):
    data = folder(root, img_size=(16, 16, 32), augmentation=VolumeAugmentation(*[0.0] * 10))
    _, mask = data.dataset("train", augmented=True)[0, 0]
    assert mask.shape == (16, 16, 32)
    assert (mask == 255).sum() == 16 * 16 * 32 - 12 * 16 * 20


def seen(shape, spacing):
    return SeenCase(shape, spacing, {0: 1}, None, (0.0,))


def test_the_plan_follows_the_published_rule():
    even = [seen((100, 200, 200), (1.0, 1.0, 1.0)), seen((120, 220, 220), (1.2, 0.8, 0.8))]
    assert target_spacing(even) == pytest.approx((1.1, 0.9, 0.9))
    thick = [seen((20, 256, 256), (length, 0.8, 0.8)) for length in (4, 5, 5, 6, 8)]
    # the tenth percentile of 4, 5, 5, 6, 8
    assert target_spacing(thick) == pytest.approx((4.4, 0.8, 0.8))
    patch = propose_patch((200, 400, 400), (1.0, 1.0, 1.0), 128**3)
    assert np.prod(patch) <= 128**3
    assert all(side % 16 == 0 for side in patch)
    # no axis is larger than the case; the short one is kept
    assert propose_patch((20, 256, 256), (5.0, 0.8, 0.8), 128**3)[0] == 20


def test_ct_is_normalized_over_all_cases_and_anything_else_by_itself(root, tmp_path):
    assert folder(root).preprocessing.intensity.zscore
    (tmp_path / "images").mkdir()
    for number in range(4):
        image, mask = make_volume(number)
        image[0] = -1000  # air
        store(tmp_path / "images" / f"{number}.nii.gz", image)
        store(tmp_path / "masks" / f"{number}.nii.gz", mask)
    data = folder(tmp_path)
    ((low, high),) = data.preprocessing.intensity.ranges or []
    assert -150 < low < -80
    assert 100 < high < 150
    inside = data.dataset("train")[0][0][0][1:][torch.from_numpy(make_volume(0)[1][1:] > 0)]
    assert abs(inside.mean()) < 2


def break_case(path, how):
    """Damage one of the files of case 3."""
    mask = path / "masks" / "3.nii.gz"
    image = path / "images" / "3.nii.gz"
    if how == "shape":
        store(mask, make_volume(3)[1][:, :, 1:])
    elif how == "affine":
        store(mask, make_volume(3)[1], "PIL", spacing=(3.3, 1.0, 0.9))
    elif how == "flat":
        content = bytearray(gzip.decompress(image.read_bytes()))
        content[254:256] = (1).to_bytes(2, "little")  # the sform is used,
        content[312:328] = bytes(16)  # whose last row is zero
        image.write_bytes(gzip.compress(bytes(content)))
    elif how == "nan":
        values = make_volume(3)[0].astype(np.float32)
        values[2, 3, 4] = np.nan
        store(image, values, "PIL")
    elif how == "channels":
        store(image, np.stack([make_volume(3)[0]] * 2, -1), "PIL")
    elif how == "mask of channels":
        store(mask, np.stack([make_volume(3)[1]] * 2, -1), "PIL")
    elif how == "truncated":
        content = image.read_bytes()
        image.write_bytes(content[: len(content) // 2])
    elif how == "cut short":
        content = gzip.decompress(image.read_bytes())
        image.unlink()
        image.with_suffix("").write_bytes(content[:-100])
    elif how == "time":
        store(image, np.stack([make_volume(3)[0]] * 30, -1)[..., None, :], "PIL")
    elif how == "fractions":
        store(mask, make_volume(3)[1] * 0.4, "PIL")
    elif how == "nan in the mask":
        values = make_volume(3)[1].astype(np.float32)
        values[2, 3, 4] = np.nan
        store(mask, values, "PIL")
    elif how == "nan in the affine":
        content = bytearray(gzip.decompress(image.read_bytes()))
        content[280:284] = struct.pack("<f", np.nan)
        image.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("shape", "is not on the grid of"),
        ("affine", "is not on the grid of"),
        ("flat", "has no usable location"),
        ("nan", "1 values that are not finite"),
        ("channels", "differ in their number of channels"),
        ("mask of channels", "expected 3 axes, one class per voxel"),
        ("truncated", "cannot be read"),
        ("cut short", "cannot be read"),
        ("time", r"number of channels: 1 .*, 30 \(images/3"),
        ("fractions", "expected whole numbers"),
        ("nan in the mask", "not finite; expected whole numbers"),
        ("nan in the affine", "has no usable location"),
    ],
)
def test_a_broken_case_is_named_before_the_training(how, words, tmp_path):
    root = write_cases(tmp_path, 5)
    break_case(root, how)
    with pytest.raises(DataError, match=words) as caught:
        folder(root).check()
    assert re.search(r"\b3\.nii", str(caught.value))


def test_all_broken_cases_are_named_at_once_and_empty_masks_too(tmp_path):
    root = write_cases(tmp_path, 6)
    break_case(root, "nan")
    (root / "images" / "1.nii.gz").write_bytes(gzip.compress(b"no volume"))
    with pytest.raises(DataError, match=r"2 cases cannot be used: .*1\.nii.*3\.nii|3\.nii.*1\.nii"):
        folder(root).check()
    empty = write_cases(tmp_path / "empty", 6)
    store(empty / "masks" / "2.nii.gz", np.zeros((12, 24, 20), np.uint8), ORIENTATIONS[2])
    data = folder(empty)
    data.check()
    assert any("1 masks hold nothing but 0 (masks/2.nii.gz)" in note for note in data.notes())


def test_masks_that_are_all_empty_are_refused(tmp_path):
    for number in range(5):
        store(tmp_path / "images" / f"{number}.nii.gz", make_volume(number)[0])
        store(tmp_path / "masks" / f"{number}.nii.gz", np.zeros((12, 24, 20), np.uint8))
    with pytest.raises(DataError, match=r"no training pixel of class \['foreground'\]"):
        folder(tmp_path).check()


def names(data):
    return {split: [item.name for item in items] for split, items in data.catalogue.splits.items()}


def test_nnunet_and_the_decathlon_are_read_with_their_descriptions(tmp_path):
    for number in range(5):
        image, mask = make_volume(number)
        for channel in (0, 1):
            store(tmp_path / "raw" / "imagesTr" / f"c{number}_000{channel}.nii.gz", image + channel)
        store(tmp_path / "raw" / "labelsTr" / f"c{number}.nii.gz", mask)
        store(tmp_path / "msd" / "imagesTr" / f"c{number}.nii.gz", image)
        store(tmp_path / "msd" / "labelsTr" / f"c{number}.nii.gz", mask)
    raw = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "ball": 2, "box": 1},
    }
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(raw))
    data = folder(tmp_path / "raw")
    assert (data.class_names, data.in_chans) == (["background", "box", "ball"], 2)
    listed = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"}
              for n in range(4)]  # fmt: skip
    msd = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "box", "2": "ball"}}
    validation = [{"image": "imagesTr/c4.nii.gz", "label": "labelsTr/c4.nii.gz"}]
    content = {**msd, "training": listed, "validation": validation}
    (tmp_path / "msd" / "dataset.json").write_text(json.dumps(content))
    data = folder(tmp_path / "msd")
    assert data.class_names == ["background", "box", "ball"]
    assert names(data)["test"] == ["imagesTr/c4.nii.gz"]  # as AMOS lists its validation
    assert data.preprocessing.intensity.ranges  # the description says CT


@pytest.mark.parametrize("year", [2021, 2023])
def test_brats_has_four_channels_regions_and_patients_in_one_split(year, tmp_path):
    enhancing = 4 if year == 2021 else 3
    data = BraTS(str(write_brats(tmp_path, 8, year)), workers=0)
    splits = names(data)
    assert data.in_chans == 4
    assert data.label_values == [0, 1, 2, enhancing]
    assert data.regions["tumor core"] == [1, enhancing]
    values = data.cases["train"][0].voxels()
    np.testing.assert_array_equal(values[..., 3] - values[..., 0], 3)
    if year == 2023:
        patients = [{name[10:15] for name in found} for found in splits.values()]
        assert len(set.union(*patients)) == sum(map(len, patients))


def test_acdc_takes_the_frames_with_masks(tmp_path):
    for number in range(1, 7):
        place = tmp_path / "training" / f"patient{number:03}"
        for frame in (1, 12):
            image, mask = make_volume(number + frame)
            mask[0, 0, 0] = 3
            store(place / f"{place.name}_frame{frame:02}.nii.gz", image)
            store(place / f"{place.name}_frame{frame:02}_gt.nii.gz", mask)
        store(place / f"{place.name}_4d.nii.gz", np.stack([image] * 3, -1))
    data = ACDC(str(tmp_path), workers=0)
    assert sum(map(len, names(data).values())) == 12
    assert not any("_4d" in name for found in names(data).values() for name in found)
    patients = [{name.split("/")[1] for name in found} for found in names(data).values()]
    assert sum(map(len, patients)) == 6


def test_a_fold_holds_each_case_once(root):
    held = [name for i in range(4) for name in names(folder(root, fold=i, folds=4))["val"]]
    assert sorted(held) == sorted(f"images/{n}.nii.gz" for n in range(8))
