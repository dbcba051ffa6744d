import json

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference

from tests.closeness import assert_same
from tests.dicom_series import FIRST, OBLIQUE, write_series
from tests.documents import find_snippets
from tests.volumes import make_volume, store, write_cases
from vimamba.cli import main
from vimamba.cli.runs import find_checkpoint, load_task
from vimamba.data import VolumeFolder
from vimamba.lightning import Trainer
from vimamba.tasks import Optimization, Segmentation, TaskError, Volumes

# the smallest with a scan
SMALL = {"dims": [4, 8], "depths": [0, 1]}
FIT = [
    *("fit", "--task", "volumes", "--model", "vss_unet_3d_nano", "--patch-size", "8x16x16"),
    *("--model.model_kwargs", str(SMALL), "--data.patches", "2", "--trainer.accelerator", "cpu"),
    # a rate that does not depend on the length of training, which stops after an epoch
    *("--model.optim.schedule", "constant", "--model.optim.warmup_epochs", "0"),
    *("--model.optim.ema", "0.9", "--model.drop_path_rate", "0.2", "--model.aux", "true"),
]


def small(**kwargs):
    torch.manual_seed(0)
    arguments = {"model_kwargs": SMALL, "num_classes": 3, "img_size": (8, 16, 16), **kwargs}
    return Volumes("vss_unet_3d_nano", **arguments).eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A finished run of two epochs, without worker processes."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    args = [*FIT, "--data", str(root), "--epochs", "2", "--workers", "0"]
    assert main([*args, "--out", str(out)]) == 0
    return out


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_workers_change_no_bit_and_a_resumed_training_goes_on_bit_for_bit(root, run, tmp_path):
    args = [*FIT, "--data", str(root)]
    other = tmp_path / "workers"
    assert main([*args, "--epochs", "2", "--workers", "2", "--out", str(other)]) == 0
    assert_same(weights(other), weights(run))
    task = Volumes(**{**small().hparams, "model_kwargs": SMALL})
    assert task.hparams["img_size"] == (8, 16, 16)

    stopped = tmp_path / "stopped"
    assert main([*args, "--epochs", "1", "--workers", "0", "--out", str(stopped)]) == 0
    assert main(["fit", "--resume", str(stopped), "--epochs", "2"]) == 0
    assert_same(weights(stopped), weights(run))


def test_predictions_lie_exactly_where_the_volumes_lie_and_go_on(root, run, tmp_path, capsys):
    out = tmp_path / "found"
    command = ["predict", str(run), str(root / "images"), "--out", str(out), "--softmax"]
    assert main([*command, "--masks", str(root / "masks")]) == 0
    for number in range(4):  # one of each orientation
        image, found, scores = (
            nibabel.load(path)
            for path in (
                root / "images" / f"{number}.nii.gz",
                out / f"{number}.nii.gz",
                out / f"{number}_softmax.nii.gz",
            )
        )
        assert found.shape == image.shape
        np.testing.assert_array_equal(found.affine, image.affine)
        np.testing.assert_array_equal(scores.affine, image.affine)
        values = np.asarray(scores.dataobj)
        np.testing.assert_array_equal(values.argmax(-1), np.asarray(found.dataobj))
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
        assert (out / "overlays" / f"{number}.png").exists()
    (out / "3.nii.gz").unlink()
    kept = (out / "2.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert "7 of them from before" in capsys.readouterr().out
    assert (out / "2.nii.gz").stat().st_mtime_ns == kept
    assert (out / "3.nii.gz").exists()


def test_a_dicom_series_is_predicted_in_its_own_geometry(run, tmp_path, capsys):
    image, _ = make_volume(1)
    # a tilted gantry: the table does not move along the normal of the slices
    step = (0.0, 0.0, 3.0)
    (row, column), spacing = OBLIQUE, (1.0, 0.9)
    files = write_series(tmp_path / "study" / "a" / "1", image, plane=OBLIQUE, step=step)
    write_series(tmp_path / "study" / "b", make_volume(2)[0], number=2)
    write_series(tmp_path / "other", make_volume(3)[0], number=3)
    for path in sorted((tmp_path / "other").iterdir()):
        path.rename(tmp_path / "study" / "b" / f"{path.name}.dcm")
    out = tmp_path / "out"
    command = ["predict", str(run), "--out", str(out)]
    assert main([*command, str(tmp_path / "study")]) == 0
    assert "left out" not in capsys.readouterr().out
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.nii.gz"))] == [
        "a/1.nii.gz", "b/2 thorax soft.nii.gz", "b/3 thorax soft.nii.gz",
    ]  # fmt: skip

    found = nibabel.load(out / "a" / "1.nii.gz")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([np.asarray(row) * spacing[1], np.asarray(column), step], 1)
    affine[:3, 3] = FIRST
    affine = np.diag([-1, -1, 1, 1]) @ affine
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    # the same volume as NIfTI has the same prediction
    nibabel.save(nibabel.Nifti1Image(image.transpose(2, 1, 0), affine), tmp_path / "same.nii.gz")
    assert main([*command[:3], str(tmp_path / "nifti"), str(tmp_path / "same.nii.gz")]) == 0
    same = nibabel.load(tmp_path / "nifti" / "same.nii.gz")
    assert (np.asarray(found.dataobj) == np.asarray(same.dataobj)).mean() > 0.999

    # one or all of its files name a series; a missing slice is an error
    assert main([*command[:3], str(tmp_path / "named"), *map(str, files)]) == 0
    assert [path.name for path in (tmp_path / "named").glob("*.nii.gz")] == ["1.nii.gz"]
    files[4].unlink()
    assert main([*command, str(tmp_path / "study")]) == 3
    assert "slices are missing" in capsys.readouterr().err


def test_channels_on_a_fourth_axis_are_predicted_in_three(tmp_path):
    for number in range(5):
        image, mask = make_volume(number)
        store(tmp_path / "d" / "images" / f"{number}.nii.gz", np.stack([image, -image], -1), "RAS")
        store(tmp_path / "d" / "masks" / f"{number}.nii.gz", mask, "RAS")
    args = [*FIT, "--data", str(tmp_path / "d"), "--epochs", "1", "--workers", "0"]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    inputs = str(tmp_path / "d" / "images")
    assert main(["predict", str(tmp_path / "run"), inputs, "--out", str(tmp_path / "o")]) == 0
    found = nibabel.load(tmp_path / "o" / "0.nii.gz")
    assert found.shape == (20, 24, 12)
    image = nibabel.load(tmp_path / "d" / "images" / "0.nii.gz")
    np.testing.assert_array_equal(found.affine, image.affine)


def test_a_run_is_exported_and_examined(run, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--to", "onnx", "--out", "ct.onnx"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "input batch x 1 x 8 x 16 x 16" in said
    assert "depth, height and width are fixed at 8x16x16: networks of volumes see windows" in said
    windows = torch.randn(2, 1, 8, 16, 16)
    (logits,) = onnxruntime.InferenceSession("ct.onnx").run(None, {"image": windows.numpy()})
    task = load_task(run, find_checkpoint(run, "best"))
    expected = task.scored_net(windows).detach()
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    report, config = (
        json.loads(path.read_text())
        for path in (tmp_path / "ct.onnx.json", run / "export" / "config.json")
    )
    assert report["preprocessing"] == config["preprocessing"]

    # the folder's model card shows how to use its network
    assert main(["export", str(run), "--to", "safetensors", "--out", "ct"]) == 0
    load, use = find_snippets((tmp_path / "ct" / "README.md").read_text())
    names = {}
    exec(compile(load, "README.md", "exec"), names)
    (tmp_path / "ct" / "volume.nii.gz").write_bytes((root / "images" / "0.nii.gz").read_bytes())
    with monkeypatch.context() as there, torch.no_grad():
        there.chdir(tmp_path / "ct")
        exec(compile(use, "README.md", "exec"), names)
        (views,) = task.views(names["volume"])
    torch.testing.assert_close(names["logits"], views, atol=2e-5, rtol=0)

    capsys.readouterr()
    assert main(["doctor", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "random volumes, 1 x 1 x 8 x 16 x 16" in said
    for network in (str(run), "ct"):
        data = ["--data", str(root / "images"), "--batch-size", "2"]
        assert main(["doctor", network, *data, "--precision", "bf16-mixed"]) == 0
        assert "2 x 1 x 8 x 16 x 16" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", str(run), "--data", str(root / "nothing.nii.gz")]) == 2


def test_windows_are_those_of_monai():
    task = small()
    volume = torch.randn(1, 1, 13, 30, 21)
    with torch.inference_mode():
        (ours,) = task.views(volume)
        theirs = sliding_window_inference(
            volume, (8, 16, 16), 4, task.scored_net, 0.5, mode="gaussian"
        )
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_slices_are_those_of_the_trilinear_interpolation():
    task = small()
    views = [torch.randn(1, 3, 5, 7, 6), torch.randn(1, 3, 5, 7, 6)]
    for size in ((9, 11, 4), (3, 7, 6)):
        mean = torch.stack([view.softmax(1) for view in views]).mean(0)
        whole = F.interpolate(mean, size=size, mode="trilinear", align_corners=False)
        found = torch.stack(list(task.stored_slices(views, size)), 2)
        torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)
        np.testing.assert_array_equal(task.classes(views, size), whole.argmax(1))


def test_scores_in_a_file_are_those_in_memory():
    volume = torch.randn(1, 1, 13, 30, 21)
    with torch.inference_mode():
        (held,), (filed,) = (small(memory=m).views(volume) for m in (2.0, 1e-9))
    assert torch.equal(held, filed)


def test_predictions_of_mirrored_views_are_mirrored_back():
    task = small()
    task.tta = "flips"
    volume = torch.randn(1, 1, 8, 16, 16)
    with torch.inference_mode():
        views = task.views(volume)
        expected = task.scored_net(volume.flip((2, 4))).flip((2, 4))
    assert len(views) == 8
    assert any(torch.allclose(view, expected, atol=1e-5) for view in views)


def test_regions_are_scored_in_addition_to_classes(root, tmp_path):
    task = small(regions={"both": [1, 2]})
    data = VolumeFolder(str(root), workers=0, img_size=(8, 16, 16))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path,
                      enable_progress_bar=False)  # fmt: skip
    trainer.test(task, data, verbose=False)
    names = [row["class"] for row in task.report["cases"]["per_class"]]
    assert names == ["1", "2", "both"]


def test_networks_of_images_and_of_volumes_name_the_other_task():
    with pytest.raises(TaskError, match="takes images; add --task segmentation"):
        Volumes("vm_unet", model_kwargs={"depths": [1, 1], "decoder_depths": [1, 1],
                                         "dims": [8, 16]})  # fmt: skip
    with pytest.raises(TaskError, match="takes volumes; add --task volumes"):
        Segmentation("vss_unet_3d_nano", img_size=16)


def test_a_training_of_minutes_ends_by_the_clock_with_the_rate_at_its_end(root, tmp_path):
    optim = Optimization(minutes=0.02, warmup_epochs=0, schedule="poly", min_lr=0.0)
    task = small(optim=optim).train()
    data = VolumeFolder(str(root), workers=0, img_size=(8, 16, 16), val_fraction=0.0)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path,
                      enable_progress_bar=False, max_epochs=100_000)  # fmt: skip
    trainer.fit(task, data)
    assert 0 < trainer.current_epoch < 100_000
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.5 * optim.lr
