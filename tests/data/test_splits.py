import numpy as np
import pytest

from vimamba.data import DataError
from vimamba.data.splits import check_groups, split_by_group, split_stratified

FRACTIONS = {"val": 0.2, "test": 0.1}


def test_a_stratified_split_keeps_the_proportions_of_the_classes():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    division = split_stratified(labels, FRACTIONS, seed=0)
    counts = {
        split: np.bincount(labels[at], minlength=3).tolist() for split, at in division.items()
    }
    assert counts == {"train": [70, 35, 7], "val": [20, 10, 2], "test": [10, 5, 1]}
    everything = np.concatenate(list(division.values()))
    assert sorted(everything) == list(range(160))


def test_every_split_gets_an_image_of_a_class_of_three():
    labels = np.repeat([0, 1], [3, 40])
    division = split_stratified(labels, {"val": 0.1, "test": 0.1}, seed=0)
    assert all(0 in labels[at] for at in division.values())


def test_the_seed_decides_the_split():
    labels = np.repeat([0, 1], 50)
    first, same, other = (split_stratified(labels, FRACTIONS, seed)["val"] for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_group_is_never_in_two_splits(multi_label):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    if multi_label:
        labels = (rng.random((200, 4)) < 0.3).astype(np.float32)
    groups = [f"patient {i}" for i in rng.integers(0, 30, 200)]
    division = split_by_group(labels, groups, FRACTIONS, seed=0)
    members = [{groups[i] for i in at} for at in division.values()]
    assert set(division) == {"train", "val", "test"}
    assert all(members)
    assert sum(len(m) for m in members) == len(set(groups))
    assert sorted(np.concatenate(list(division.values()))) == list(range(200))
    assert 0.1 < len(division["val"]) / 200 < 0.3


def test_too_few_groups_are_an_error():
    with pytest.raises(DataError, match="2 groups cannot be divided into 3 splits"):
        split_by_group(np.zeros(4, dtype=int), ["a", "a", "b", "b"], FRACTIONS, seed=0)


def test_a_given_split_that_leaks_a_group_is_an_error():
    division = {"train": np.array([0, 1]), "val": np.array([2])}
    check_groups(division, ["a", "b", "c"])
    with pytest.raises(DataError, match="group 'b' is in both 'train' and 'val'"):
        check_groups(division, ["a", "b", "b"])


def test_fractions_that_leave_nothing_are_an_error():
    with pytest.raises(DataError, match="nothing is left for training"):
        split_stratified(np.zeros(4, dtype=int), {"val": 0.5, "test": 0.5}, seed=0)
    with pytest.raises(DataError, match=r"val_fraction=1\.5"):
        split_stratified(np.zeros(4, dtype=int), {"val": 1.5}, seed=0)
