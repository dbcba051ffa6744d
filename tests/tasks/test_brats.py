"""BraTS from folders to masks: four modalities per case, regions, ensembles of runs."""

import csv

import nibabel
import numpy as np
import pytest

from tests.volumes import make_volume, store, write_brats
from vimamba.cli import main

FIT = [
    *("fit", "--task", "volumes", "--model", "vss_unet_3d_nano", "--patch-size", "8x16x16"),
    *("--model.model_kwargs", "{dims: [4, 8], depths: [0, 1]}", "--data.patches", "2"),
    *("--workers", "0", "--epochs", "1", "--trainer.accelerator", "cpu"),
    *("--model.optim.warmup_epochs", "0", "--lr", "0.01"),
]
REGIONS = {"whole tumor", "tumor core", "region of enhancing tumor"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_brats(tmp_path_factory.mktemp("brats"), 6, 2021)


@pytest.fixture(scope="module")
def runs(cases, tmp_path_factory):
    """Two folds."""
    out = tmp_path_factory.mktemp("runs")
    for fold in (0, 1):
        args = ["--data", str(cases), "--data.fold", str(fold), "--data.folds", "3"]
        assert main([*FIT, *args, "--out", str(out / f"fold{fold}")]) == 0
    return [out / "fold0", out / "fold1"]


def softmax(folder, case):
    return np.asarray(nibabel.load(folder / case / f"{case}_softmax.nii.gz").dataobj)


def test_runs_predict_the_mean_for_cases_of_four_files(cases, runs, tmp_path, capsys):
    def predict(name, run, *options):
        out = tmp_path / name
        command = ["predict", str(run), str(cases), "--out", str(out), "--softmax", *options]
        assert main([*command, "--no-overlays"]) == 0
        return out

    first, second = (predict(f"one{i}", run) for i, run in enumerate(runs))
    both = predict("both", runs[0], "--with", str(runs[1]), "--masks", str(cases))
    file = str(runs[1] / "checkpoints" / "best.ckpt")
    again = predict("again", runs[0], "--with", file)
    names = sorted(path.name for path in cases.iterdir())
    masks = [path for path in both.rglob("*.nii.gz") if "softmax" not in path.name]
    assert sorted(path.parent.name for path in masks) == names
    for case in names[:2]:
        mean = (softmax(first, case) + softmax(second, case)) / 2
        assert np.abs(softmax(first, case) - softmax(second, case)).max() > 1e-4
        np.testing.assert_allclose(softmax(both, case), mean, atol=1e-5)
        np.testing.assert_array_equal(softmax(again, case), softmax(both, case))
        found = nibabel.load(both / case / f"{case}.nii.gz")
        assert {*np.unique(np.asarray(found.dataobj))} <= {0, 1, 2, 4}
        np.testing.assert_array_equal(
            found.affine, nibabel.load(cases / case / f"{case}_t1.nii.gz").affine
        )
    rows = list(csv.DictReader((both / "cases.csv").open()))
    assert {row["class"] for row in rows} >= REGIONS
    assert len({row["case"] for row in rows}) == len(names)


def test_runs_that_do_not_go_together_are_refused(cases, runs, tmp_path, capsys):
    for number in range(6):
        for kind, volume in zip(("images", "masks"), make_volume(number), strict=True):
            store(tmp_path / "other" / kind / f"{number}.nii.gz", volume)
    other = tmp_path / "run"
    assert main([*FIT, "--data", str(tmp_path / "other"), "--out", str(other)]) == 0
    capsys.readouterr()
    command = ["predict", str(runs[0]), str(cases), "--out", str(tmp_path / "out")]
    assert main([*command, "--with", str(other)]) == 2
    assert "differ in data." in capsys.readouterr().err
    assert main([*command, "--with", str(runs[1]), "--ckpt", "best.ckpt"]) == 2
    assert "for several runs it must be best or last" in capsys.readouterr().err
    assert main([*command, "--with", str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "out").exists()
