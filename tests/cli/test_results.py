import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

import vimamba.tasks
from tests.closeness import assert_same_report
from vimamba.cli import main
from vimamba.data import Preprocessing


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_validate_and_test_score_the_checkpoint_asked_for(run, capsys, tmp_path):
    before = json.loads((run / "metrics.json").read_text())["test"]
    results = tmp_path / "m.json"
    assert main(["test", str(run), "--results", str(results)]) == 0
    after = json.loads(results.read_text())["test"]
    assert_same_report({k: after[k] for k in before}, before)
    assert (
        main(["validate", str(run), "--ckpt", "last", "--tta", "flips", "--results", str(results)])
        == 0
    )
    both = json.loads(results.read_text())
    assert set(both) == {"test", "val"}
    assert both["val"]["checkpoint"].endswith("last.ckpt")
    out = capsys.readouterr().out
    assert "precision" in out
    assert "broad" in out


def test_all_images_of_other_data_are_scored(run, folder, tmp_path):
    results = tmp_path / "m.json"
    shutil.copytree(folder, tmp_path / "new")
    shutil.copytree(folder, tmp_path / "divided" / "test")
    for data, split in (("new", "test"), ("new", "validate"), ("divided", "test")):
        args = [str(run), "--data", str(tmp_path / data), "--results", str(results)]
        assert main([split, *args]) == 0
    assert {k: v["images"] for k, v in json.loads(results.read_text()).items()} == {
        "test": 48,
        "val": 48,
    }


def test_predict_writes_names_and_probabilities(run, folder, tmp_path, capsys):
    out = tmp_path / "found" / "answers.csv"
    assert main(["predict", str(run), str(folder / "fine"), "--out", str(out), "--topk", "2"]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [f"{i}.png" for i in range(16)]
    assert all(row["label"] == row["label_1"] for row in rows)
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size[0] > 500


def test_predict_takes_files_and_lists_and_agrees_with_the_export(run, folder, tmp_path):
    (tmp_path / "list.csv").write_text(f"path\n{folder / 'broad' / '3.png'}\n")
    out = tmp_path / "answers.json"
    image = folder / "fine" / "1.png"
    assert (
        main(["predict", str(run), str(image), str(tmp_path / "list.csv"), "--out", str(out)]) == 0
    )
    rows = json.loads(out.read_text())
    assert [row["path"] for row in rows] == [str(image), str(folder / "broad" / "3.png")]
    assert sum(top["probability"] for top in rows[0]["top"]) == pytest.approx(1, abs=1e-4)
    net = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    with Image.open(image) as picture, torch.no_grad():
        probability = net(transform(picture)[None]).softmax(-1).max().item()
    # the pictures are 20 pixels high, the input 16: both resize with Pillow's filter, to a level
    assert rows[0]["top"][0]["probability"] == pytest.approx(probability, abs=2e-3)


def test_a_run_leaves_everything_in_its_folder(run):
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    left = {name for name in left if not name.startswith("tensorboard/")}
    assert left == {
        "config.yaml", "run.json", "metrics.csv", "metrics.json", "split.csv", "curves.png",
        "samples.png",
        "confusion_matrix.png", "cases_test.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "export/README.md",
        "export/config.json", "export/model.safetensors",
    }  # fmt: skip
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert {"lr", "train/loss", "val/loss", "val/accuracy", "val/ece"} <= set(rows[0])
    report = json.loads((run / "metrics.json").read_text())["test"]
    assert report["images"] == 6
    with (run / "cases_test.csv").open() as file:
        cases = list(csv.DictReader(file))
    right = np.mean([row["truth"] == row["prediction"] for row in cases])
    assert report["accuracy"] == pytest.approx(right)
    assert [row["class"] for row in report["per_class"]] == ["broad", "fine", "middle"]
    for name in ("curves", "samples", "confusion_matrix"):
        with Image.open(run / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_the_export_is_the_best_average(run):
    net = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True)
    state = weights(run / "checkpoints" / "best.ckpt")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[f"average.module.{key}"])
    assert list(net.pretrained_cfg["label_names"]) == ["broad", "fine", "middle"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_failed_image_does_not_affect_the_others(workers, run, folder, tmp_path, capsys, spoiled):
    spoiled(vimamba.tasks.Classification, 2)
    images, out = tmp_path / "images", tmp_path / "p.csv"
    shutil.copytree(folder / "fine", images)
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:100])
    Image.new("RGB", (24, 20), "white").save(images / "white.png")
    (images / "list.csv").write_text("path\nmissing.png\n.\n4.png\n")
    args = ["predict", str(run), "--out", str(out), "--batch-size", "32", "--workers", workers]
    assert main([*args, str(images), str(images / "list.csv")]) == 3
    with out.open() as file:
        rows = list(csv.DictReader(file))
    found = sorted(int(Path(row["path"]).stem) for row in rows)
    assert found == sorted([*range(3), *range(4, 16), 4])
    said = capsys.readouterr().err
    assert "no prediction for 4 of 20 inputs" in said
    for text in ("3.png cannot be read", "not finite", "missing.png is neither", "is a folder"):
        assert text in said
    # named directly, among others
    long = tmp_path / f"{'x' * 260}.png"
    assert main([*args[:-4], str(images / "4.png"), str(long), str(tmp_path / "gone")]) == 3
    assert "no prediction for 2 of 3 inputs" in capsys.readouterr().err
    # no list is written without any prediction
    none = ["predict", str(run), str(images / "white.png"), "--out", str(tmp_path / "none.csv")]
    assert main(none) == 3
    assert not list(tmp_path.glob("none*"))


def test_scores_of_outputs_that_are_not_finite_are_refused(run, capsys, spoiled, tmp_path):
    spoiled(vimamba.tasks.Classification, -9)
    assert main(["test", str(run), "--results", str(tmp_path / "m.json")]) == 2
    assert "output is not finite for" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_only_lists_and_sheets_of_ours_are_overwritten(run, folder, tmp_path, capsys):
    image = tmp_path / "x.png"
    shutil.copy(folder / "fine" / "1.png", image)
    before = image.read_bytes()
    # the sheet of x.csv would be x.png
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "x.csv")]) == 2
    assert "x.png is an input" in capsys.readouterr().err
    assert image.read_bytes() == before
    (tmp_path / "list.csv").write_text("path,label\nx.png,fine\n")
    (tmp_path / "notes.csv").write_text("path,label\n")
    for name, text in (("list", "is an input"), ("notes", "not one of our predictions")):
        args = ["predict", str(run), str(tmp_path / "list.csv")]
        assert main([*args, "--out", str(tmp_path / f"{name}.csv")]) == 2
        assert text in capsys.readouterr().err
    # a list of ours is replaced, and its sheet is no image of the folder
    for name in ("p.csv", "p.csv"):
        assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path / name)]) == 0
        assert f"\n{image}: " in capsys.readouterr().out
    for name in ("q.json", "q.json"):
        assert main(["predict", str(run), str(image), "--out", str(tmp_path / name)]) == 0


def test_deep_images_of_many_bands_are_the_same_everywhere(tmp_path, capsys):
    rng = np.random.default_rng(0)
    spectra = rng.uniform(200, 3000, (2, 13))
    for label, spectrum in enumerate(spectra):
        (tmp_path / "bands" / f"{label}").mkdir(parents=True)
        for number in range(12):
            pixels = (spectrum + rng.normal(0, 80, (20, 24, 13))).clip(0).astype(np.uint16)
            path = tmp_path / "bands" / f"{label}" / f"{number}.tif"
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    run = tmp_path / "run"
    args = ["--data", str(tmp_path / "bands"), "--data.in_chans", "13", "--out", str(run)]
    small = "{patch_size: 8, depth: 1, embed_dim: 32, num_heads: 2}"
    args += ["--model", "test_vit", "--model.model_kwargs", small, "--img-size", "16"]
    args += ["--workers", "0", "--batch-size", "8", "--lr", "0.01", "--epochs", "3"]
    assert main(["fit", *args]) == 0
    assert "ranges found in 16 training images" in capsys.readouterr().out
    # two spectra differ in the picture unless it is all black
    assert json.loads((run / "metrics.json").read_text())["test"]["accuracy"] == 1
    image = tmp_path / "bands" / "1" / "3.tif"
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "a.json")]) == 0
    for command in (["test", str(run)], ["doctor", str(run), "--data", str(image)]):
        assert main(command) == 0
    args = ["--to", "safetensors", "--out", str(tmp_path / "again")]
    assert main(["export", str(run), *args]) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())
    for folder in (run / "export", tmp_path / "again"):
        assert "the network takes 13 bands of them" in (folder / "README.md").read_text()
        config = json.loads((folder / "config.json").read_text())
        prepare = Preprocessing.from_settings(config["preprocessing"])
        net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            probability = net(prepare.file(image)[None]).softmax(-1).max().item()
        assert row["top"][0]["probability"] == pytest.approx(probability, abs=1e-5)
