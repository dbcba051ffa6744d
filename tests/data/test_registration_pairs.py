"""Pairs for registration: listing, loading, and errors."""

import nibabel
import numpy as np
import pytest

from vimamba.data import CaseFolder, DataError, PairCSV

SHAPE = (6, 5, 4)


def write(path, values=None, affine=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(seed).normal(500, 100, SHAPE)
    image = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), np.eye(4) if affine is None
                                else affine)  # fmt: skip
    nibabel.save(image, path)
    return path


@pytest.fixture
def folder(tmp_path):
    for number in range(9):
        write(tmp_path / "images" / f"p{number}.nii.gz", seed=number)
        labels = np.zeros(SHAPE)
        labels[1:3], labels[4] = 10, 20 + number % 2
        write(tmp_path / "labels" / f"p{number}.nii.gz", labels)
    return tmp_path


def folder_data(folder, **kwargs):
    return CaseFolder(str(folder), workers=0, **kwargs)


def test_cases_are_in_one_split_and_all_their_ordered_pairs_are_scored(folder):
    data = folder_data(folder)
    data.check()
    names = {split: {c.name for c in data.cases(split)} for split in data.catalogue.splits}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 9
    for split, cases in names.items():
        scored = data.pairs_to_score(split)
        assert len({pair.name for pair in scored}) == len(cases) * (len(cases) - 1) >= 2
        assert all(pair.moving.path != pair.fixed.path for pair in scored)
        assert {case.name for pair in scored for case in pair.cases} == cases


def test_a_pair_is_scaled_and_its_labels_are_numbered(folder):
    data = folder_data(folder)
    assert data.label_values == [10, 20, 21]
    found = data.dataset("train")[0]
    assert found.images.shape == (2, 1, *SHAPE)
    for image in found.images:
        assert (image.min(), image.max()) == (0, 1)
    assert set(found.labels.unique().tolist()) <= {0, 1, 2, 3}
    assert found.spacing.tolist() == [1, 1, 1]
    chosen = folder_data(folder, label_values=[10]).dataset("train")[0]
    assert chosen.labels.unique().tolist() == [0, 1]


def test_what_is_drawn_depends_on_seed_epoch_and_place_alone(folder):
    def draws(seed):
        pairs = folder_data(folder, seed=seed).dataset("train", augmented=True).pairs
        return [[pairs.pair(epoch, index).name for index in range(len(pairs))] for epoch in (0, 1)]

    assert draws(0) == draws(0)
    first, second = draws(0)
    assert first != second
    assert all(one != other for one, _, other in (name.split() for name in first + second))


def test_workers_change_nothing(folder):
    def names(workers):
        data = CaseFolder(str(folder), workers=workers)
        return [name for batch in data.train_dataloader() for name in batch[3]]

    assert names(0) == names(1)


def test_an_atlas_is_in_no_split(folder):
    data = folder_data(folder, atlas="p3")
    data.check()
    for split in data.catalogue.splits:
        assert {pair.fixed.path.name for pair in data.pairs_to_score(split)} == {"p3.nii.gz"}
        assert "p3.nii.gz" not in {p.moving.path.name for p in data.all_pairs(split)}
    with pytest.raises(DataError, match="atlas='p99' is neither a case in"):
        folder_data(folder, atlas="p99").check()


def write_list(folder, rows, head="moving,fixed"):
    (folder / "pairs.csv").write_text("\n".join([head, *rows]))
    return PairCSV(str(folder / "pairs.csv"), workers=0, val_fraction=0.3, test_fraction=0)


def test_listed_pairs_that_share_an_image_stay_together(folder):
    chains = [(0, 1), (1, 2), (3, 4), (5, 6), (7, 8)]
    data = write_list(folder, [f"images/p{a}.nii.gz,images/p{b}.nii.gz" for a, b in chains])
    data.check()
    cases = [{c.path for c in data.cases(split)} for split in ("train", "val")]
    assert not cases[0] & cases[1]
    assert data.label_values == []
    atlas = write_list(folder, [f"images/p{a}.nii.gz,images/p8.nii.gz" for a in range(4)])
    assert {split: len(items) for split, items in atlas.catalogue.splits.items()} == {
        "train": 2, "val": 2,
    }  # fmt: skip


def test_a_list_that_puts_an_image_into_two_splits_is_refused(folder):
    rows = ["images/p0.nii.gz,images/p1.nii.gz,train", "images/p1.nii.gz,images/p2.nii.gz,val",
            "images/p3.nii.gz,images/p4.nii.gz,val"]  # fmt: skip
    with pytest.raises(DataError, match=r"p\d.nii.gz' is in both 'train' and 'val'"):
        write_list(folder, rows, "moving,fixed,split").check()


def test_what_lies_elsewhere_is_refused_or_resampled(folder):
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 3] = 2
    write(folder / "images" / "p4.nii.gz", affine=affine)
    with pytest.raises(DataError, match=r"p4.nii.gz .*is not on the grid of"):
        folder_data(folder).check()
    folder_data(folder, align=True).check()


@pytest.mark.parametrize(
    "given", [{"mean": [0.5]}, {"bands": [0]}, {"intensity": {"window": [0, 1000]}}], ids=str
)
def test_what_normalizes_images_is_refused(given, folder):
    with pytest.raises(DataError, match="is not for pairs: each image becomes 0 to 1"):
        folder_data(folder, **given)


def test_images_are_divided_as_those_of_any_data_set(folder):
    data = folder_data(folder, fold=1, folds=3, group_pattern=r"p(\d)", seed=3)
    held = [
        {case.name for case in folder_data(folder, fold=i, folds=3).cases("val")} for i in range(3)
    ]
    assert sorted(len(cases) for cases in held) == [3, 3, 3]
    assert len(set.union(*held)) == 9
    assert (data.hparams["fold"], data.hparams["seed"], data.hparams["workers"]) == (1, 3, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: write(f / "images/p2.nii.gz", np.full(SHAPE, np.nan)), r"p2.*not finite"),
        (lambda f: write(f / "labels/p2.nii.gz", np.zeros(SHAPE)), r"p2.*nothing but 0"),
        (lambda f: write(f / "labels/p2.nii.gz", np.full(SHAPE, 0.5)), r"p2.*fractions"),
        (lambda f: write(f / "images/p2.nii.gz", np.ones((*SHAPE, 2))), r"p2.*2 channels"),
        (lambda f: write(f / "images/p2.nii.gz", np.ones((6, 5, 3))), r"p2.*is not on the grid of"),
        (lambda f: (f / "labels/p2.nii.gz").unlink(), r"p2.*has no labels"),
        (lambda f: (f / "images/p2.nii.gz").write_bytes(b"\x1f\x8b\x08"), r"p2.*cannot be read"),
    ],
    ids=["nan", "empty labels", "fractions", "channels", "shape", "no labels", "damaged"],
)
def test_broken_cases_are_named_before_any_training(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        folder_data(folder).check()
