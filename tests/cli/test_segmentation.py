import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vimamba.tasks
from tests.closeness import assert_same_report
from vimamba.cli import main
from vimamba.tasks.segmentation import predict as mask_prediction

# all randomness is enabled: augmentation, drop path; and the average of the weights
RECIPE = {
    "seed_everything": 3,
    "model": {
        "class_path": "vimamba.tasks.Segmentation",
        "init_args": {
            "model": "vm_unet",
            "model_kwargs": {"depths": [1, 1], "decoder_depths": [1, 1], "dims": [8, 16]},
            "drop_path_rate": 0.2,
            "optim": {"lr": 0.003, "warmup_epochs": 1, "ema": 0.9},
            "objective": {"class_weights": "balanced"},
        },
    },
    "data": {
        "class_path": "vimamba.data.MaskFolder",
        "init_args": {
            "img_size": 16, "batch_size": 4, "workers": 0, "augmentation": "microscopy",
            "fit": "window",
        },
    },
    "trainer": {"max_epochs": 4, "accelerator": "cpu", "devices": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Bright squares, 255 in the masks."""
    root = tmp_path_factory.mktemp("data") / "pairs"
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(16):
        mask = np.zeros((24, 30), dtype=np.uint8)
        top, left = rng.integers(0, 14, 2)
        mask[top : top + 10, left : left + 10] = 255
        pixels = rng.integers(0, 90, (24, 30, 3)) + mask[..., None] // 2
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, pairs) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "squares.yaml"
    content = json.loads(json.dumps(RECIPE))
    content["data"]["init_args"]["root"] = str(pairs)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, recipe) -> Path:
    """A finished run of four epochs."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert main(["fit", "-c", str(recipe), "--out", str(out)]) == 0
    return out


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("epoch", "workers"),
    [
        pytest.param(0, 0, marks=pytest.mark.slow),
        pytest.param(2, 0, marks=pytest.mark.slow),
        (2, 2),
    ],
)
def test_an_interrupted_training_continues_bit_for_bit(
    epoch, workers, run, recipe, tmp_path, monkeypatch
):
    task, out = vimamba.tasks.Segmentation, tmp_path / "run"
    step = task.training_step

    def interrupted_step(self, batch, batch_idx):
        if batch_idx == 1 and self.current_epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(task, "training_step", interrupted_step)
        args = ["fit", "-c", str(recipe), "--workers", str(workers), "--out", str(out)]
        assert main(args) == 130
    assert not (out / "export").exists()
    assert main(["fit", "--resume", str(out)]) == 0
    for name in ("last.ckpt", "best.ckpt"):
        assert same_weights(out / "checkpoints" / name, run / "checkpoints" / name)
    assert rows_of(out / "metrics.csv") == rows_of(run / "metrics.csv")


def test_another_seed_gives_other_weights(run, recipe, tmp_path):
    args = ["fit", "-c", str(recipe), "--out", str(tmp_path / "x"), "--seed", "4"]
    assert main([*args, "--epochs", "1"]) == 0
    last = Path("checkpoints") / "last.ckpt"
    assert not same_weights(tmp_path / "x" / last, run / last)


def test_a_run_leaves_everything_in_its_folder(run):
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    left = {name for name in left if not name.startswith("tensorboard/")}
    assert left == {
        "config.yaml", "run.json", "metrics.csv", "metrics.json", "split.csv", "curves.png",
        "samples.png",
        "data.png", "confusion_matrix.png", "cases_test.csv", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt", "export/README.md", "export/config.json",
        "export/model.safetensors",
    }  # fmt: skip
    assert {"val/dice", "val/miou", "val/loss", "train/loss"} <= set(
        rows_of(run / "metrics.csv")[0]
    )
    report = json.loads((run / "metrics.json").read_text())["test"]
    assert report["images"] == 2
    assert [row["class"] for row in report["per_class"]] == ["background", "foreground"]
    cases = rows_of(run / "cases_test.csv")
    assert [set(row) for row in cases] == [{"case", "class", "dice", "hd95", "surface_dice"}] * 2
    dices = [float(row["dice"]) for row in cases]
    assert report["case_dice"] == pytest.approx(np.mean(dices))
    for name in ("curves", "samples", "data", "confusion_matrix"):
        with Image.open(run / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_the_summary_names_classes_parts_and_sizes(run, recipe, tmp_path, capsys):
    assert main(["fit", "-c", str(recipe), "--out", str(tmp_path / "x"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "(2 classes)" in out
    assert "foreground  255" in out
    assert "image size 24x30, cut into windows of 16x16" in out
    assert "batch (4, 3, 16, 16), labels (4, 16, 16)" in out
    assert not (tmp_path / "x").exists()


def test_the_best_checkpoint_is_scored_again_with_equal_results(run, tmp_path, capsys):
    results = tmp_path / "m.json"
    before = json.loads((run / "metrics.json").read_text())["test"]
    assert main(["test", str(run), "--results", str(results)]) == 0
    after = json.loads(results.read_text())["test"]
    assert_same_report({k: after[k] for k in before}, before)
    assert_same_report(rows_of(tmp_path / "cases_test.csv"), rows_of(run / "cases_test.csv"))
    assert main(["validate", str(run), "--tta", "flips", "--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert "surface Dice" in out
    assert "val mean Dice" in out


def test_other_data_are_scored_with_the_runs_own_labels(run, pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "new")
    args = ["--data", str(tmp_path / "new"), "--results", str(tmp_path / "m.json")]
    assert main(["test", str(run), *args]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["test"]["images"] == 16


def test_the_short_way_needs_no_recipe(pairs, tmp_path):
    args = ["--task", "segmentation", "--data", str(pairs), "--model", "test_vmamba"]
    args += ["--img-size", "32", "--epochs", "1", "--workers", "0", "--out", str(tmp_path / "x")]
    assert main(["fit", *args, "--model.head", "fpn", "--batch-size", "4"]) == 0
    assert (tmp_path / "x" / "export" / "model.safetensors").exists()


def test_predictions_are_masks_in_the_values_of_the_training(run, pairs, tmp_path, capsys):
    out = tmp_path / "found"
    args = ["predict", str(run), str(pairs / "images"), "--out", str(out)]
    assert main([*args, "--masks", str(pairs / "masks"), "--tta", "hflip"]) == 0
    assert "HD95" in capsys.readouterr().out
    for number in range(16):
        with Image.open(out / f"{number}.png") as mask:
            assert mask.mode == "P"
            values = np.asarray(mask)
        assert values.shape == (24, 30)
        assert set(np.unique(values)) <= {0, 255}
        assert (out / "overlays" / f"{number}.png").exists()
    rows = rows_of(out / "cases.csv")
    assert [row["case"] for row in rows] == [str(n) for n in range(16)]
    found = np.asarray(Image.open(out / "3.png")) > 0
    truth = np.asarray(Image.open(pairs / "masks" / "3.png")) > 0
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert float(rows[3]["dice"]) == pytest.approx(expected)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 500
    assert not list(out.rglob("*.part"))


def test_an_interrupted_prediction_goes_on_where_it_stopped(run, pairs, tmp_path, monkeypatch):
    straight, out = tmp_path / "straight", tmp_path / "out"
    args = ["predict", str(run), str(pairs / "images"), "--batch-size", "3", "--out"]
    assert main([*args, str(straight)]) == 0
    write, done = mask_prediction.save_image, []

    def interrupted(image, path):
        if len(done) == 9:
            image.save(path.with_name(f".{path.name}.part"), format="PNG")
            raise KeyboardInterrupt
        done.append(path)
        write(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(mask_prediction, "save_image", interrupted)
        assert main([*args, str(out)]) == 130
    for path in out.glob("*.png"):  # completely or not at all
        assert path.read_bytes() == (straight / path.name).read_bytes()
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 0 < len(first) < 16
    assert main([*args, str(out)]) == 0
    for path in straight.glob("[0-9]*.png"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    # a changed image is predicted again; other options are rejected
    os.utime(out / "0.png", (1, 1))
    assert main([*args, str(out)]) == 0
    assert (out / "0.png").stat().st_mtime > 1
    assert main([*args, str(out), "--tta", "flips"]) == 2


def test_volumes_keep_their_affine(tmp_path, capsys):
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0.9, 0.1, 5], [-0.7, 0, 0, 9], [0, 0.3, 2.5, -4], [0, 0, 0, 1.0]])
    for name in "abcdef":
        mask = np.zeros((14, 18, 6), dtype=np.uint8)
        mask[3:9, 4:12, 2:5] = 1
        image = (rng.normal(0, 40, mask.shape) + 300.0 * mask).astype(np.int16)
        for folder, values in (("images", image), ("masks", mask)):
            (tmp_path / "ct" / folder).mkdir(parents=True, exist_ok=True)
            volume = nibabel.Nifti1Image(values, affine)
            nibabel.save(volume, tmp_path / "ct" / folder / f"{name}.nii.gz")
    out, run = tmp_path / "found", tmp_path / "run"
    args = ["--task", "segmentation", "--data", str(tmp_path / "ct"), "--out", str(run)]
    args += ["--model.model_kwargs", "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"]
    args += ["--data.intensity.window", "[-100, 400]", "--lr", "0.01", "--workers", "0"]
    args += ["--data.augmentation", "none", "--batch-size", "6"]
    assert main(["fit", *args, "--img-size", "16", "--epochs", "8"]) == 0
    rows = rows_of(run / "cases_test.csv")
    assert [row["case"] for row in rows] == ["images/" + rows[0]["case"].split("/")[1]]
    folders = ["--masks", str(tmp_path / "ct" / "masks"), "--out", str(out)]
    assert main(["predict", str(run), str(tmp_path / "ct" / "images"), *folders]) == 0
    assert "HD95" in capsys.readouterr().out
    for name in "abcdef":
        found = nibabel.load(out / f"{name}.nii.gz")
        truth = nibabel.load(tmp_path / "ct" / "masks" / f"{name}.nii.gz")
        np.testing.assert_array_equal(found.affine, truth.affine)
        values, wanted = np.asarray(found.dataobj), np.asarray(truth.dataobj)
        assert values.dtype == np.uint8
        # in the right place: the block is bright, so a few epochs are enough to find most of it
        dice = 2 * (values & wanted).sum() / (values.sum() + wanted.sum())
        assert dice > 0.6
        row = next(row for row in rows_of(out / "cases.csv") if row["case"] == name)
        assert float(row["dice"]) == pytest.approx(dice)


def test_true_masks_are_found_by_the_names_of_nnunet(tmp_path):
    for name in ("case_1.nii.gz", "case_2_0000.nii.gz", "photo_segmentation.png"):
        (tmp_path / name).touch()
    names = ("case_1_0000", "case_2_0000", "photo")
    jobs = [mask_prediction.Job((tmp_path / f"{name}.nii.gz",), name) for name in names]
    found = mask_prediction.find_truths([tmp_path], jobs, {})
    assert [found[name].name for name in names] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--task", "painting"], "--task painting: expected one of classification, segment"),
        (["fit", "--task", "segmentation", "--data", "nowhere"], "nowhere' is not a folder"),
        (["fit", "--task", "segmentation"], "--data PATH is required"),
        (["fit", "-c", "{recipe}", "--model", "vm_une"], "error: model='vm_une' is unknown; close"),
        (["fit", "-c", "{recipe}", "--model", "mambamorph"], "is a network for registration, not"),
        (["fit", "-c", "{recipe}", "--model.optim.lrr", "1"], "--model.optim.lrr is unknown"),
        (["fit", "-c", "{recipe}", "--data", "{broken}"], "images/1.png has 24x30 pixels, its"),
        (["fit", "-c", "{recipe}", "--data.fold", "9"], "fold=9 must lie in [0, 4]"),
        (["predict", "{run}", "nowhere"], "nowhere is neither a file nor a folder"),
        (["predict", "{run}", "{pairs}/images", "--topk", "2"], "--topk is for classification"),
        (["predict", "{run}", "{pairs}/images", "--out", "x.csv"], "x.csv must be a folder"),
        (["predict", "{run}", "{pairs}/images", "--out", "{pairs}"], "holds files that are no"),
        (["predict", "{run}", "{pairs}/images", "--masks", "{broken}/masks"], "has no mask for 3"),
        (["predict", "{run}", "{pairs}/images", "--overlap", "1"], "--overlap 1.0 must lie in"),
        (["predict", "{run}", "{pairs}/images", "{pairs}/masks"], "would get the same name"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_ends_with_2(args, message, request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = dict.fromkeys(("run", "recipe", "pairs"), "")
    for name in places:
        if any(f"{{{name}}}" in arg for arg in args):
            places[name] = request.getfixturevalue(name)
    broken = tmp_path / "broken"
    shutil.copytree(request.getfixturevalue("pairs"), broken)
    Image.new("L", (5, 5)).save(broken / "masks" / "1.png")
    if "predict" in args:
        (broken / "masks" / "3.png").unlink()
    capsys.readouterr()
    assert main([arg.format(**places, broken=broken) for arg in args]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.fixture
def mixed(pairs, tmp_path) -> Path:
    """Four images, a damaged one and a wholly white one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(4):
        shutil.copy(pairs / "images" / f"{number}.png", folder)
    (folder / "damaged.png").write_bytes((pairs / "images" / "9.png").read_bytes()[:300])
    Image.new("RGB", (30, 24), "white").save(folder / "white.png")
    return folder


def masks_in(out: Path) -> set[str]:
    return {path.stem for path in out.glob("*.png")} - {"contact_sheet"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failed_image_does_not_affect_the_others(workers, run, mixed, tmp_path, capsys, spoiled):
    spoiled(vimamba.tasks.Segmentation, 2)
    (mixed / "list.csv").write_text("image\nmissing.png\n.\n../mixed/white.png\n1.png\n")
    out = tmp_path / "out"
    args = ["predict", str(run), str(mixed), "--out", str(out), "--batch-size", "6"]
    assert main([*args, "--workers", str(workers)]) == 3
    said = capsys.readouterr()
    assert masks_in(out) == set("0123") == {p.stem for p in (out / "overlays").glob("*.png")}
    assert "no prediction for 2 of 6 inputs" in said.err
    assert "damaged.png cannot be read" in said.err
    assert "white.png: the network's output is not finite" in said.err
    assert "4 masks; written to" in said.out
    # a list with missing files; its predictions are below --out
    listed = tmp_path / "listed"
    assert main(["predict", str(run), str(mixed / "list.csv"), "--out", str(listed)]) == 3
    said = capsys.readouterr().err
    assert "no prediction for 3 of 4 inputs" in said
    assert "missing.png is neither a file nor a folder" in said
    assert f"{mixed} is a folder" in said
    assert masks_in(listed) == {"1"}
    # and if there is no prediction at all
    args = ["predict", str(run), str(mixed / "white.png"), "--out", str(tmp_path / "none")]
    assert main(args) == 3
    assert not list((tmp_path / "none").rglob("*.png"))


def test_damaged_and_wrong_volumes_do_not_cost_the_others_theirs(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, channels in (("good", 3), ("wrong", 2), ("cut", 3)):
        values = rng.integers(0, 255, (16, 16, 2, channels), dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    cut = tmp_path / "in" / "cut.nii.gz"
    cut.write_bytes(cut.read_bytes()[:600])
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["init_args"]["intensity"] = {"window": [0, 255]}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    assert main(["predict", str(copy), str(tmp_path / "in"), "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert "no prediction for 2 of 3 inputs" in said
    assert "wrong.nii.gz" in said
    assert "cut.nii.gz" in said
    assert [path.name for path in out.glob("*.nii.gz")] == ["good.nii.gz"]


def test_masks_stay_below_the_folder_and_overwrite_nothing(run, pairs, tmp_path, capsys):
    for name in ("data", "lists"):
        (tmp_path / name).mkdir()
    for number in range(2):
        shutil.copy(pairs / "images" / f"{number}.png", tmp_path / "data" / f"t{number}.bmp")
        (tmp_path / "data" / f"t{number}.png").write_text("a true mask")
    (tmp_path / "lists" / "l.csv").write_text("image\n../data/t0.bmp\n../data/t1.bmp\n")
    args = ["predict", str(run), str(tmp_path / "lists" / "l.csv"), "--no-overlays", "--out"]
    out = tmp_path / "out"
    assert main([*args, str(out)]) == 0
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.png")} == {
        "data/t0.png", "data/t1.png"
    }  # fmt: skip
    assert (tmp_path / "data" / "t0.png").read_text() == "a true mask"
    with (out / "masks.csv").open() as file:
        rows = {row["mask"]: row["image"] for row in csv.DictReader(file)}
    assert rows["data/t0.png"] == str(tmp_path / "lists" / "../data/t0.bmp").replace(
        "lists/../", ""
    )
    # a file that the user added since, and a name that belongs to another image
    (out / "0.png").write_text("mine")
    assert main(["predict", str(run), str(pairs / "images"), "--out", str(out)]) == 2
    assert "0.png is not one of our predictions" in capsys.readouterr().err
    assert (out / "0.png").read_text() == "mine"
    shutil.copytree(tmp_path / "data", tmp_path / "other" / "data")
    other = tmp_path / "other" / "l.csv"
    other.write_text("image\ndata/t0.bmp\n")
    assert main(["predict", str(run), str(other), "--out", str(out)]) == 2
    assert "t0.png is the mask of" in capsys.readouterr().err


def test_a_prediction_that_was_killed_goes_on(run, pairs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    args = ["predict", str(run), str(pairs / "images" / "0.png"), "--out", str(out)]
    (out / ".part-x").mkdir(parents=True)
    (out / ".part-x" / "prediction.json").touch()
    for name in ("prediction.json", "masks.csv", "overlays/0.png", "0.png"):
        replace = os.replace

        def killed(source, target, name=name, replace=replace):
            if target == out / name:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            assert main(args) == 130
        assert not (out / name).exists()
    assert main(args) == 0
    assert main(args) == 0
    assert "1 mask, 1 of them from before" in capsys.readouterr().out
    # not with another checkpoint, nor after the record is damaged
    assert main([*args, "--ckpt", "last"]) == 2
    assert "name another folder or remove it" in capsys.readouterr().err
    (out / "prediction.json").write_text("{")
    assert main(args) == 2
    assert "prediction.json is damaged" in capsys.readouterr().err


def test_a_bad_true_mask_costs_its_own_score_only(run, pairs, tmp_path, capsys):
    truths, out = tmp_path / "truths", tmp_path / "out"
    shutil.copytree(pairs / "masks", truths)
    (truths / "5.png").write_text("no mask")
    args = ["predict", str(run), str(pairs / "images"), "--out", str(out), "--no-overlays"]
    assert main([*args, "--masks", str(truths)]) == 3
    said = capsys.readouterr()
    assert "no score of" in said.err
    assert "5.png cannot be read" in said.err
    rows = rows_of(out / "cases.csv")
    assert len(rows) == 15
    # each by its score in the run, and so are the means
    with (run / "split.csv").open() as file:
        splits = {Path(row["path"]).stem: row["split"] for row in csv.DictReader(file)}
    assert all(row["split"] == splits[row["case"]] for row in rows)
    test = [float(row["dice"]) for row in rows if row["split"] == "test"]
    assert f"{np.mean(test):.4f} over {len(test)} of its test images" in said.out


def test_large_images_are_predicted_as_small_ones_are(run, pairs, tmp_path, monkeypatch):
    from vimamba.tasks.segmentation import inputs as mask_inputs

    args = ["predict", str(run), str(pairs / "images" / "3.png"), "--tta", "flips", "--out"]
    assert main([*args, str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(mask_inputs, "LARGE", 1)
    assert main([*args, str(tmp_path / "windows")]) == 0
    whole, windows = (np.asarray(Image.open(tmp_path / o / "3.png")) for o in ("whole", "windows"))
    np.testing.assert_array_equal(whole, windows)
