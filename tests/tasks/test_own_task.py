"""A task is a folder: the commands train, score, predict and draw with a custom one."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import tests.tasks.rotation  # registers it, like --import
import tests.tasks.rotation.report
from vimamba.cli import cross_validation, main
from vimamba.cli.folds import finished_run
from vimamba.errors import UsageError
from vimamba.tasks import Classification, Task, TaskError, register_task
from vimamba.tasks.ensemble import join_tasks
from vimamba.tasks.registry import class_path, find_task, list_tasks
from vimamba.tasks.tools import fold_tools_of, tools_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Bars that are bright at one end, which shows their direction."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, count in (("a", 24), ("b", 24)):
        (folder / name).mkdir()
        for i in range(count):
            image = rng.integers(0, 30, (32, 32, 3))
            image[14:18, 4:28] += np.linspace(0, 220, 24, dtype=np.int64)[:, None]
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_a_custom_task_works_with_all_commands(photos, tmp_path, capsys):
    run = tmp_path / "run"
    args = ["--task", "rotation", "--data", str(photos), "--model", "test_vmamba"]
    args += ["--img-size", "32", "--epochs", "2", "--lr", "3e-3", "--out", str(run)]
    assert main(["fit", *args, "--batch-size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "val within 30°" in shown
    assert "degrees on" in shown
    assert {"errors.png", "curves.png", "export", "config.yaml"} <= {p.name for p in run.iterdir()}

    assert main(["test", str(run)]) == 0
    scores = json.loads((run / "metrics.json").read_text())["test"]
    assert 0 <= scores["error"] <= 180
    rows = list(csv.DictReader((run / "cases_test.csv").open()))
    assert len(rows) == scores["images"]
    mean = np.mean([float(row["error"]) for row in rows])
    assert mean == pytest.approx(scores["error"], abs=1e-3)

    assert main(["predict", str(run), str(photos / "a"), "--out", str(tmp_path / "o.csv")]) == 0
    assert len(list(csv.DictReader((tmp_path / "o.csv").open()))) == 24
    assert main(["predict", str(run), str(photos / "a"), "--topk", "2"]) == 2
    assert "--topk is for classification runs" in capsys.readouterr().err


def test_a_custom_task_is_cross_validated_and_its_folds_predict_together(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cross_validation, "run_fit", lambda args: main(["fit", *args]))
    out = tmp_path / "cv"
    args = ["--task", "rotation", "--data", str(photos), "--model", "test_vmamba"]
    args += ["--img-size", "32", "--epochs", "1", "--workers", "0", "--folds", "2"]
    assert main(["cross-validate", *args, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "degrees of 48 held-out images" in shown
    summary = json.loads((out / "summary.json").read_text())
    errors = [float(row["error"]) for row in csv.DictReader((out / "cases.csv").open())]
    assert (summary["task"], summary["cases"], len(errors)) == ("rotation", 48, 48)
    folds = [row["error"] for row in summary["per_fold"]]
    assert summary["over_folds"]["error"]["mean"] == pytest.approx(np.mean(folds))
    assert summary["over_cases"]["error"]["mean"] == pytest.approx(np.mean(errors))
    assert {"folds.png", "folds.csv", "errors.png"} <= {path.name for path in out.iterdir()}

    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = [finished_run(out / f"fold{fold}", "best").load() for fold in range(2)]
        vector = sum(task(image) for task in alone)
        found = finished_run(out, None).load().predict_step((image,), 0)
    torch.testing.assert_close(found, torch.atan2(vector[:, 1], vector[:, 0]))


def test_folds_of_a_task_without_ensembles_do_not_predict(monkeypatch):
    task = tests.tasks.rotation.Rotation("test_vmamba", img_size=32)
    monkeypatch.delattr(type(task), "views")
    with pytest.raises(TaskError, match=r"Rotation cannot combine several networks.*`views`"):
        join_tasks([task, task])


def test_tasks_are_found_by_name_and_a_near_one_is_proposed():
    assert {"classification", "registration", "segmentation"} <= set(list_tasks())
    assert find_task("classification") is Classification
    assert class_path(Classification) == "vimamba.tasks.Classification"
    with pytest.raises(UsageError, match=r"--task rotatoin.*did you mean rotation"):
        find_task("rotatoin")
    with pytest.raises(ValueError, match="'rotation' is already the task Rotation"):
        register_task("rotation")(Task)


def test_a_task_without_its_module_is_named():
    with pytest.raises(UsageError, match="Task names no module of tables and pictures"):
        tools_of(Task)


def test_an_incomplete_module_is_named_with_what_is_missing(monkeypatch):
    monkeypatch.delattr(tests.tasks.rotation.report, "pool_folds")
    with pytest.raises(UsageError, match=r"rotation\.report, the module .* lacks pool_folds"):
        fold_tools_of(tests.tasks.rotation.Rotation)
