"""Folds: no group in two of them, the classes in all, for every format of data."""

import numpy as np
import pytest
from PIL import Image

from vimamba.data import CSVList, DataError, ImageFolder, MaskFolder, MedMNIST
from vimamba.data.folds import split_fold
from vimamba.data.splits import write_split


def held_out(labels, groups, folds, seed=0):
    return [split_fold(labels, groups, fold, folds, seed)["val"] for fold in range(folds)]


def test_every_image_is_held_out_once_and_the_classes_are_in_proportion():
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    parts = held_out(labels, None, 5)
    assert sorted(np.concatenate(parts)) == list(range(80))
    counts = np.array([np.bincount(labels[at], minlength=3) for at in parts])
    assert (counts.max(0) - counts.min(0) <= 1).all()
    assert set(counts.sum(1)) == {16}


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_group_is_held_out_as_a_whole_and_classes_are_spread(multi_label):
    rng = np.random.default_rng(0)
    groups = [f"p{i}" for i in rng.integers(0, 40, 300)]
    labels = rng.integers(0, 3, 300)
    if multi_label:
        labels = (rng.random((300, 4)) < 0.3).astype(np.float32)
    parts = held_out(labels, groups, 4)
    members = [{groups[i] for i in at} for at in parts]
    assert sum(map(len, members)) == len(set(groups))
    classes = labels if multi_label else np.eye(3)[labels]
    shares = np.array([classes[at].sum(0) for at in parts]) / classes.sum(0)
    assert abs(shares - 0.25).max() < 0.06


def test_without_classes_parts_are_equal_in_groups():
    groups = np.repeat([f"p{i}" for i in range(11)], range(1, 12)).tolist()
    parts = held_out(np.zeros(len(groups), dtype=int), groups, 3)
    assert sorted(len({groups[i] for i in at}) for at in parts) == [3, 4, 4]


def test_of_masks_every_class_is_in_as_many_groups_of_each_fold(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for patient in range(12):
        for image in range(1 + patient % 3):
            values = np.zeros((8, 8), dtype=np.uint8)
            values[0] = 1
            values[1] = 2 * (patient % 3 == 0)
            values[2] = 3 * (patient in (1, 4, 5, 11))
            for name in ("images", "masks"):
                Image.fromarray(values).save(tmp_path / name / f"p{patient}_{image}.png")
    rare, held = [], []
    for fold in range(4):
        data = MaskFolder(str(tmp_path), fold=fold, folds=4, group_pattern=r"(p\d+)_")
        people = patients(names(data)["val"])
        held += people
        assert len(people) == 3
        rare.append([len(people & {f"p{i}" for i in who}) for who in ((0, 3, 6, 9), (1, 4, 5, 11))])
    assert len(set(held)) == 12
    assert rare == [[1, 1]] * 4


def test_the_seed_decides_the_folds():
    labels = np.repeat([0, 1], 50)
    first, same, other = (split_fold(labels, None, 0, 5, seed)["val"] for seed in (1, 1, 2))
    assert first.tolist() == same.tolist() != other.tolist()


def test_too_few_groups_are_an_error():
    with pytest.raises(DataError, match="2 groups cannot be divided into folds=3"):
        split_fold(np.zeros(4, dtype=int), ["a", "a", "b", "b"], 0, 3, 0)


def names(data):
    return {
        split: {part[i].name for i in range(len(part))}
        for split, part in data.catalogue.splits.items()
    }


def write_images(folder, count, pattern="p{}_{}.png"):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / pattern.format(number // 2, number))


def patients(images):
    return {name.split("/")[-1].split("_")[0] for name in images}


def test_of_a_folder_of_classes_no_patient_is_in_two_splits_of_a_fold(tmp_path):
    for name in "ab":
        write_images(tmp_path / name, 12)
    seen = set()
    for fold in range(3):
        data = ImageFolder(
            str(tmp_path), fold=fold, folds=3, fold_as="test", group_pattern=r"(p\d+)_"
        )
        found = names(data)
        assert set(found) == {"train", "val", "test"}
        assert all(data.count(split).min() > 0 for split in found)
        people = [patients(images) for images in found.values()]
        assert sum(map(len, people)) == 6
        seen |= found["test"]
    assert len(seen) == 24


def test_of_a_folder_of_splits_train_and_val_are_one_pool_and_test_stays_out(tmp_path):
    for split, count in (("train", 8), ("val", 4), ("test", 3)):
        for name in "ab":
            write_images(tmp_path / split / name, count)
    given = {f"test/{n}/p{i // 2}_{i}.png" for n in "ab" for i in range(3)}
    plain = [ImageFolder(str(tmp_path), fold=fold, folds=3) for fold in range(3)]
    assert all(names(data)["test"] == given for data in plain)
    assert len(set.union(*(names(data)["val"] for data in plain))) == 24
    nested = ImageFolder(str(tmp_path), fold=1, folds=3, fold_as="test")
    assert names(nested)["test"] == names(plain[1])["val"]
    assert not given & set.union(*names(nested).values())


def test_a_csv_list_keeps_its_groups_together_in_folds(tmp_path):
    write_images(tmp_path / "x", 16)
    lines = ["path,label,split,group"]
    for i in range(16):
        split = "test" if i >= 12 else "val" if i % 3 == 0 else "train"
        lines.append(f"x/p{i // 2}_{i}.png,{'ab'[i % 2]},{split},g{i // 2}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for fold in range(3):
        data = CSVList(str(tmp_path / "list.csv"), fold=fold, folds=3, fold_as="test")
        found = names(data)
        assert len(found["test"]) == 4
        assert sum(len(patients(images)) for images in found.values()) == 6


def test_of_a_medmnist_file_train_and_val_are_one_pool(tmp_path):
    arrays = {}
    for split, count in (("train", 12), ("val", 6), ("test", 5)):
        arrays[f"{split}_images"] = np.zeros((count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(tmp_path / "mnist.npz", **arrays)
    folds = [MedMNIST(str(tmp_path / "mnist.npz"), fold=k, folds=3, in_chans=1) for k in range(3)]
    held = [names(data)["val"] for data in folds]
    assert sorted(map(len, held)) == [6, 6, 6]
    assert {name.split("_")[0] for name in set.union(*held)} == {"train", "val"}
    assert {len(names(data)["test"]) for data in folds} == {5}


@pytest.mark.parametrize("fold_as", ["val", "test"])
def test_split_csv_gives_the_fold_back(fold_as, tmp_path):
    for split, count in (("train", 8), ("val", 4), ("test", 3)):
        for kind in ("images", "masks"):
            write_images(tmp_path / "data" / split / kind, count)
    data = MaskFolder(str(tmp_path / "data"), fold=0, folds=3, fold_as=fold_as)
    assert data.catalogue.drawn
    write_split(tmp_path / "split.csv", data.catalogue.splits, ["a"])
    again = MaskFolder(
        str(tmp_path / "data"), fold=0, folds=3, fold_as=fold_as,
        split_csv=str(tmp_path / "split.csv"), seed=5,
    )  # fmt: skip
    assert names(again) == names(data)


def test_without_an_inner_split_all_the_rest_is_for_training(tmp_path):
    for name in "ab":
        write_images(tmp_path / name, 6)
    data = ImageFolder(str(tmp_path), fold=0, folds=3, fold_as="test", val_fraction=0)
    assert {split: len(part) for split, part in data.catalogue.splits.items()} == {
        "train": 8, "test": 4,
    }  # fmt: skip
    data.check_splits()
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 3, "folds": 3}, r"fold=3 must lie in \[0, 2\]"),
        ({"fold": 0, "folds": 1}, "folds=1 must be at least 2"),
        ({"fold": 0, "folds": 9}, "8 images cannot be divided into folds=9"),
        ({"group_pattern": "(p"}, r"group_pattern='\(p' is not a regular expression"),
        ({"group_pattern": "q"}, "group_pattern='q' matches nothing in a/p0_0.png"),
        ({"group_pattern": "p0_0|(p1)"}, "matches nothing in a/p0_0.png"),
    ],
)
def test_folds_that_cannot_be_are_named(arguments, message, tmp_path):
    for name in "ab":
        write_images(tmp_path / name, 4)
    with pytest.raises(DataError, match=message):
        _ = ImageFolder(str(tmp_path), **arguments).catalogue
