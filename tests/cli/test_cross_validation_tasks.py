"""`vimamba cross-validate` of change, volumes and registration: pooling and ensembles."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from demo_registration import draw_case
from PIL import Image

from tests.pairs import write_pairs
from tests.volumes import write_cases
from vimamba.cli import cross_validation, main


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def cross_validate(tmp_path, monkeypatch):
    """Two folds of one epoch each, in this process; returns the folder and its summary."""
    monkeypatch.setattr(cross_validation, "run_fit", lambda args: main(["fit", *args]))

    def run(task, data, *more):
        out = tmp_path / "cv"
        args = ["--task", task, "--data", str(data), "--out", str(out), "--folds", "2", *more]
        args += ["--epochs", "1", "--workers", "0", "--trainer.accelerator", "cpu"]
        assert main(["cross-validate", *args]) == 0
        return out, json.loads((out / "summary.json").read_text())

    return run


def reports_of(out):
    files = [out / f"fold{fold}" / "metrics.json" for fold in range(2)]
    return [json.loads(file.read_text())["test"] for file in files]


def test_of_change_the_pixels_of_all_held_out_pairs_are_pooled(cross_validate, tmp_path):
    root = write_pairs(tmp_path / "pairs", 8)
    options = ["--model", "test_vmamba", "--model.head", "fpn", "--img-size", "32"]
    out, summary = cross_validate("change", root, *options, "--batch-size", "2")
    held = [r["path"] for f in (0, 1) for r in rows_of(out / f"fold{f}" / "split.csv")
            if r["split"] == "test"]  # fmt: skip
    assert len(set(held)) == len(held) == summary["cases"] == 8
    counts = np.sum([report["confusion"] for report in reports_of(out)], axis=0)
    assert summary["pooled"]["confusion"] == counts.tolist()
    assert counts.sum() == 8 * 32 * 32
    (_, false), (missed, hit) = counts
    assert summary["pooled"]["f1"] == pytest.approx(2 * hit / (2 * hit + false + missed))
    for name in ("folds.png", "confusion_matrix.png"):
        assert Image.open(out / name).size[0] > 300
    assert main(["predict", str(out), *(str(root / d) for d in "AB"), "--out", str(out / "m")]) == 0
    assert len(list((out / "m").glob("*.png"))) == 8


def test_of_volumes_every_held_out_case_is_scored(cross_validate, tmp_path):
    root = write_cases(tmp_path / "cases", 6)
    options = ["--model", "vss_unet_3d_nano", "--patch-size", "8x16x16", "--data.patches", "2"]
    options += ["--model.model_kwargs", "{dims: [4, 8], depths: [0, 1]}"]
    out, summary = cross_validate("volumes", root, *options, "--data.regions", "{both: [1, 2]}")
    cases = rows_of(out / "cases.csv")
    assert {row["class"] for row in cases} == {"class 1", "class 2", "both"}
    assert len({row["case"] for row in cases}) == summary["cases"] == 6
    dice = {(row["case"], row["class"]): float(row["dice"]) for row in cases}
    # a region consists of classes that are already counted
    wanted = np.mean([value for (_, name), value in dice.items() if name != "both"])
    assert summary["over_cases"]["dice"]["mean"] == pytest.approx(wanted)
    regions = [value for (_, name), value in dice.items() if name == "both"]
    assert summary["per_class"][2]["dice"]["mean"] == pytest.approx(np.mean(regions))
    assert len(summary["pooled"]["per_class"]) == 3
    image = root / "images" / "0.nii.gz"
    assert main(["predict", str(out), str(image), "--out", str(out / "masks")]) == 0
    assert (out / "masks" / "0.nii.gz").is_file()


def test_of_registration_pairs_lie_within_a_fold(cross_validate, tmp_path, capsys):
    for number in range(8):
        image, labels = draw_case(number, (24, 32, 8), 2.0)
        for kind, values in (("images", image.clip(0, 1000) / 4), ("labels", labels)):
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
            middle = Image.fromarray(values[:, :, 4].astype(np.uint8))
            middle.save(tmp_path / "in" / kind / f"{number}.png")
    options = ["--model.model_kwargs", "{embed_dim: 8, head_dim: 8}", "--data.label_values"]
    options += ["[2, 3]", "--model.objective.ncc_window", "5"]
    many = ["cross-validate", "--task", "registration", "--data", str(tmp_path / "in"), "--folds"]
    assert main([*many, "8", "--out", str(tmp_path / "cv"), *options]) == 2
    assert "1 cases, too few for a pair; add cases, name an atlas" in capsys.readouterr().err
    out, summary = cross_validate("registration", tmp_path / "in", *options)
    assert f"next: vimamba predict {out} MOVING FIXED" in capsys.readouterr().out
    cases = rows_of(out / "cases.csv")
    assert len(cases) == summary["cases"] == 2 * 4 * 3
    folds = {}
    for row in cases:
        for name in row["pair"].split(" -> "):
            folds.setdefault(name, set()).add(row["fold"])
    assert len(folds) == 8
    assert all(len(found) == 1 for found in folds.values())
    for when in ("", "_before"):
        pairs = [np.mean([float(row[f"dice{when} {name}"]) for name in "23"]) for row in cases]
        found = summary["over_cases"][f"dice{when}"]
        assert found["mean"] == pytest.approx(np.mean(pairs))
        assert found["sd"] == pytest.approx(np.std(pairs, ddof=1))
    assert summary["over_cases"]["ncc"] != summary["over_cases"]["ncc_before"]
    assert Image.open(out / "scores.png").size[0] > 300
    files = [str(tmp_path / "in" / "images" / f"{n}.png") for n in (0, 1)]
    assert main(["predict", str(out), *files, "--out", str(out / "x")]) == 0
    assert "fields of 2 networks: the mean of their velocities" in capsys.readouterr().out
    assert (out / "x" / "0_to_1_field.nii.gz").is_file()
