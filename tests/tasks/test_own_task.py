"""A task is a folder: one that is not ours trains, is scored, answers and draws by the commands."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import tests.tasks.rotation  # noqa: F401  registers it, as --import does
from vimamba.cli import main
from vimamba.errors import UsageError
from vimamba.tasks import Classification, Task, register_task
from vimamba.tasks.registry import class_path, find_task, list_tasks
from vimamba.tasks.tools import tools_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Bars that are bright at one end: their direction shows."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, count in (("a", 24), ("b", 24)):
        (folder / name).mkdir()
        for i in range(count):
            image = rng.integers(0, 30, (32, 32, 3))
            image[14:18, 4:28] += np.linspace(0, 220, 24, dtype=np.int64)[:, None]
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_a_task_of_ones_own_goes_through_all_commands(photos, tmp_path, capsys):
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
    rows = list(csv.DictReader((run / "errors_test.csv").open()))
    assert len(rows) == scores["images"]
    mean = np.mean([float(row["error"]) for row in rows])
    assert mean == pytest.approx(scores["error"], abs=1e-3)

    assert main(["predict", str(run), str(photos / "a"), "--out", str(tmp_path / "o.csv")]) == 0
    assert len(list(csv.DictReader((tmp_path / "o.csv").open()))) == 24
    assert main(["predict", str(run), str(photos / "a"), "--topk", "2"]) == 2
    assert "--topk is for classification runs" in capsys.readouterr().err


def test_tasks_are_found_by_name_and_a_near_one_is_proposed():
    assert {"classification", "registration", "segmentation"} <= set(list_tasks())
    assert find_task("classification") is Classification
    assert class_path(Classification) == "vimamba.tasks.Classification"
    with pytest.raises(UsageError, match=r"--task rotatoin.*did you mean rotation"):
        find_task("rotatoin")
    with pytest.raises(ValueError, match="'rotation' is the task Rotation already"):
        register_task("rotation")(Task)


def test_a_task_without_its_module_is_named():
    with pytest.raises(UsageError, match="Task names no module of tables and pictures"):
        tools_of(Task)
