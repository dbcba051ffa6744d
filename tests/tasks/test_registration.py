"""Registration: from a folder of cases to fields that other tools can apply."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from demo_registration import draw_case, write_case
from PIL import Image
from scipy.ndimage import gaussian_filter

import vimamba
from vimamba.cli import main
from vimamba.networks.registration import warp
from vimamba.tasks import ImageRegistration, TaskError
from vimamba.tasks.registration.fields import write_field, write_volume
from vimamba.tasks.registration.pictures import checkerboard, cut
from vimamba.tasks.registration.scores import score_pair

SHAPE = (16, 20, 16)
SMALL = ["--model.model_kwargs", "{embed_dim: 8, head_dim: 8}", "--workers", "0"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        write_case(folder / split, f"p{number}", *draw_case(number, SHAPE, 2.5))
    return folder


@pytest.fixture(scope="module")
def run(cases, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    args = ["--task", "registration", "--data", str(cases), "--out", str(out), *SMALL]
    args += ["--model.objective.dice", "1", "--model.objective.gradient", "0.1"]
    args += ["--model.objective.ncc_window", "5", "--batch-size", "2"]
    assert main(["fit", *args, "--epochs", "20", "--lr", "1e-2"]) == 0
    return out


def test_a_short_training_aligns_labels(run):
    report = json.loads((run / "metrics.json").read_text())["test"]
    assert report["pairs"] == 2
    assert report["dice"] > report["dice_before"] + 0.02
    assert report["ncc"] > report["ncc_before"]
    assert report["folded"] < 0.02
    assert {row["class"] for row in report["per_class"]} == {"1", "2", "3", "4"}
    assert {"data.png", "samples.png", "scores.png"} <= {path.name for path in run.iterdir()}
    rows = list(csv.DictReader((run / "cases_test.csv").open()))
    assert rows[0]["pair"] == "test/images/p6.nii.gz -> test/images/p7.nii.gz"


def test_test_scores_a_run_again(run, capsys):
    before = json.loads((run / "metrics.json").read_text())["test"]
    assert main(["test", str(run)]) == 0
    after = json.loads((run / "metrics.json").read_text())["test"]
    assert after["dice"] == pytest.approx(before["dice"], abs=1e-6)
    assert main(["test", str(run), "--tta", "flips"]) == 2
    assert "--tta flips is for classification" in capsys.readouterr().err


def test_a_list_of_pairs_gets_files_and_scores(run, cases, tmp_path, capsys):
    lines = ["moving,fixed,moving_labels,fixed_labels"]
    paths = [cases / "test" / kind / f"{n}.nii.gz" for kind in ("images", "labels") for n in
             ("p6", "p7")]  # fmt: skip
    lines.append(",".join(map(str, paths)))
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    out = tmp_path / "found"
    assert main(["predict", str(run), str(tmp_path / "pairs.csv"), "--out", str(out)]) == 0
    (row,) = csv.DictReader((out / "pairs.csv").open())
    report = json.loads((run / "metrics.json").read_text())["test"]
    scored = next(r for r in csv.DictReader((run / "cases_test.csv").open()))
    assert float(row["dice 2"]) == pytest.approx(float(scored["dice 2"]), abs=1e-4)
    assert set(report) >= {"dice", "hd95", "hd95_before"}
    fixed, labels = nibabel.load(paths[1]), nibabel.load(out / row["labels"])
    np.testing.assert_allclose(labels.affine, fixed.affine, atol=1e-6)
    assert labels.shape == fixed.shape == nibabel.load(out / row["warped"]).shape
    assert nibabel.load(out / row["field"]).shape == (*fixed.shape, 1, 3)
    assert Image.open(out / row["checkerboard"]).size[0] > 400
    # again, over its own files; nothing else is overwritten
    assert main(["predict", str(run), str(tmp_path / "pairs.csv"), "--out", str(out)]) == 0
    (out / "pairs.csv").unlink()
    assert main(["predict", str(run), str(tmp_path / "pairs.csv"), "--out", str(out)]) == 2
    assert "was not written by `vimamba predict`" in capsys.readouterr().err
    assert main(["predict", str(run), str(paths[0]), "--out", str(out)]) == 2
    assert "name two files, MOVING and FIXED" in capsys.readouterr().err


def test_the_export_registers_without_lightning(run):
    net = vimamba.load_network(run / "export")
    assert net(*torch.rand(2, 1, 1, *SHAPE)).flow.shape == (1, 3, *SHAPE)


def test_a_run_is_examined_and_exported(run, cases, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ["--img-size", "16x20x16"]
    assert main(["doctor", str(run), *size]) == 0
    assert "1 x 2 x 1 x 16 x 20 x 16" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", str(run), "--data", str(cases / "test" / "images")]) == 2
    assert "mambamorph takes two" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "safetensors", "--out", "again", *size]) == 0
    pair = torch.rand(2, 2, 1, *SHAPE)
    ours, theirs = (vimamba.load_network(place).eval() for place in ("again", run / "export"))
    with torch.no_grad():
        expected = theirs(pair[:, 0], pair[:, 1])
        assert torch.equal(ours(pair).flow, expected.flow)
    assert main(["export", str(run), "--to", "torch-export", "--out", "pairs.pt2", *size]) == 0
    found = torch.export.load("pairs.pt2").module()(pair)
    torch.testing.assert_close(found.flow, expected.flow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_itk_moves_a_volume_by_our_field_as_we_do(turned, tmp_path):
    itk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    shape = (14, 18, 12)
    affine = np.diag([-1.5, -1.0, 2.0, 1.0])
    if turned:  # axes in another order, oblique
        from scipy.spatial.transform import Rotation

        affine = np.diag([1.0, 1.5, 2.0, 1.0])[[2, 0, 1, 3]] @ np.diag([1, -1, 1, 1.0])
        affine[:3, :3] = (
            Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ (affine[:3, :3])
        )
    affine[:3, 3] = (12, -30, 7)
    values = gaussian_filter(rng.normal(0, 100, shape), 1).astype(np.float32)
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    from vimamba.data.paired.cases import read_values

    ours = torch.from_numpy(read_values(path))[None]
    flow = gaussian_filter(rng.normal(0, 1, (3, *ours.shape[2:])), (0, 3, 3, 3))
    flow = torch.from_numpy(flow * (2 / np.abs(flow).max())).float()
    moved = warp(ours, flow[None])[0].numpy()
    write_field(flow.numpy(), path, tmp_path / "field.nii.gz")
    write_volume(moved, path, tmp_path / "moved.nii.gz")

    image, written = (itk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("image", "moved"))
    field = itk.ReadImage(str(tmp_path / "field.nii.gz"), itk.sitkVectorFloat64)
    assert field.GetSize() == image.GetSize()
    theirs = itk.Resample(image, itk.DisplacementFieldTransform(field), itk.sitkLinear)
    inner = (slice(3, -3),) * 3  # ITK handles the edge differently
    found, expected, still = (itk.GetArrayFromImage(i)[inner] for i in (theirs, written, image))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.abs(found - still).max() > 10


def test_images_are_registered_too(tmp_path):
    for number in range(4):
        image, labels = draw_case(number, (24, 32, 8), 2.0)
        for kind, values in (("images", image.clip(0, 1000) / 4), ("labels", labels)):
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
            middle = Image.fromarray(values[:, :, 4].astype(np.uint8))
            middle.save(tmp_path / "in" / kind / f"{number}.png")
    out, files = tmp_path / "run", [str(tmp_path / "in" / "images" / f"{n}.png") for n in (0, 1)]
    args = ["--task", "registration", "--data", str(tmp_path / "in"), "--out", str(out), *SMALL]
    args += ["--epochs", "1", "--data.test_fraction", "0", "--data.label_values", "[2, 3]"]
    assert main(["fit", *args]) == 0
    assert main(["predict", str(out), *files, "--out", str(tmp_path / "found")]) == 0
    assert nibabel.load(tmp_path / "found" / "0_to_1_field.nii.gz").shape == (32, 24, 1, 1, 2)
    assert (tmp_path / "found" / "0_to_1_warped.tif").is_file()


def test_scores_tell_a_shift_that_is_undone():
    labels = torch.zeros(2, 12, 12, 12, dtype=torch.int64)
    labels[0, 4:8, 4:8, 4:8], labels[1, 2:6, 4:8, 4:8] = 1, 1
    images = labels[:, None].float()
    flow = torch.zeros(3, 12, 12, 12)
    flow[0] = 2
    row = score_pair(images, flow, labels, ["cube"], spacing=[1.5, 1, 1], window=3)
    assert row["dice cube"] == pytest.approx(1)
    assert row["dice_before cube"] == pytest.approx(0.5)
    assert (row["hd95 cube"], row["hd95_before cube"]) == (0, 3)
    assert row["folded"] == 0
    assert row["ncc"] > row["ncc_before"]


def test_half_of_a_checkerboard_is_of_each_image():
    board = checkerboard(np.zeros((8, 16)), np.ones((8, 16)), squares=4)
    assert board[0, 0] == 0
    assert board[0, 4] == 1
    assert board[4, 0] == 1
    assert board.mean() == 0.5


def test_a_slice_stands_upright():
    volume = np.zeros((4, 5, 6))
    volume[:, :, 5] = 1  # the top of the head
    assert cut(volume, "coronal")[0].all()
    assert cut(volume, "coronal").shape == (6, 4)
    assert cut(volume, "axial").shape == (5, 4)


def test_losses_and_networks_that_do_not_fit_are_named():
    with pytest.raises(TaskError, match=r"objective.dice .* compare labels, and the data has none"):
        ImageRegistration(objective={"dice": 1.0})
    with pytest.raises(TaskError, match=r"model='mambamorf'.*mambamorph"):
        ImageRegistration("mambamorf")
    with pytest.raises(TaskError, match="no weights are published"):
        ImageRegistration(pretrained=True)
