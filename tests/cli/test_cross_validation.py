"""`vimamba cross-validate`: folds, their report, resuming, and predictions of all folds."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vimamba.tasks
from vimamba.cli import cross_validation, main
from vimamba.cli.folds import finished_run, read_record
from vimamba.files import lock_folder

FOLDS = 2


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Train folds in this process, because separate processes are slow to start."""
    calls = []

    def run_fit(args):
        calls.append(args)
        return main(["fit", *args])

    monkeypatch.setattr(cross_validation, "run_fit", run_fit)
    return calls


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows, key):
    return [float(row[key]) for row in rows if row[key]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of stripes, two images per patient."""
    root, rng = tmp_path_factory.mktemp("folds") / "photos", np.random.default_rng(0)
    for name, step in (("broad", 8), ("fine", 2)):
        (root / name).mkdir(parents=True)
        for number in range(8):
            stripes = (np.arange(32) // step % 2 * 200)[None, :, None]
            pixels = (stripes + rng.integers(0, 50, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"p{number // 2}_{number}.png")
    return root


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Bright squares and bars, two images per patient."""
    root, rng = tmp_path_factory.mktemp("folds") / "scans", np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[4:14, 2 + number : 12 + number] = 1
        if number != 5:
            mask[20:24] = 2
        pixels = rng.integers(0, 60, (32, 32, 3)) + 60 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(
            root / "images" / f"p{number // 2}_{number}.png"
        )
        Image.fromarray(mask).save(root / "masks" / f"p{number // 2}_{number}.png")
    return root


def options(data: Path, out: Path, *more: str) -> list[str]:
    args = ["--data", str(data), "--out", str(out), "--folds", str(FOLDS), "--workers", "0"]
    args += ["--img-size", "32", "--epochs", "1", "--batch-size", "4"]
    args += ["--trainer.accelerator", "cpu"]
    return ["cross-validate", *args, "--data.group_pattern", r"(p\d+)_", *more]


CLASSIFY = ("--model", "test_vim")
TINY = "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"
SEGMENT = ("--task", "segmentation", "--model", "vm_unet", "--model.model_kwargs", TINY)


@pytest.fixture(scope="module")
def classified(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cv") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "run_fit", lambda args: main(["fit", *args]))
        assert main(options(photos, out, *CLASSIFY)) == 0
    return out


@pytest.fixture(scope="module")
def segmented(scans, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cv") / "scans"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "run_fit", lambda args: main(["fit", *args]))
        assert main(options(scans, out, *SEGMENT, "--choose", "last")) == 0
    return out


def people(rows):
    return {row["path"].split("/")[-1].split("_")[0] for row in rows}


def test_every_image_is_scored_by_the_fold_that_never_saw_its_patient(classified):
    cases = rows_of(classified / "cases.csv")
    assert sorted(row["case"] for row in cases) == sorted(
        f"{name}/p{i // 2}_{i}.png" for name in ("broad", "fine") for i in range(8)
    )
    for fold in range(FOLDS):
        split = rows_of(classified / f"fold{fold}" / "split.csv")
        parts = [[r for r in split if r["split"] == s] for s in ("train", "val", "test")]
        assert sum(len(people(part)) for part in parts) == 4
        held = {row["case"] for row in cases if row["fold"] == str(fold)}
        assert held == {row["path"] for row in parts[2]}


def test_the_report_pools_the_images_and_spreads_over_the_folds(classified):
    cases, folds = rows_of(classified / "cases.csv"), rows_of(classified / "folds.csv")
    summary = json.loads((classified / "summary.json").read_text())
    right = [row["truth"] == row["prediction"] for row in cases]
    assert [row["right"] == "1" for row in cases] == right
    assert summary["pooled"]["accuracy"] == pytest.approx(np.mean(right))
    accuracies = numbers(folds, "accuracy")
    found = summary["over_folds"]["accuracy"]
    assert found["mean"] == pytest.approx(np.mean(accuracies))
    assert found["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    for fold, accuracy in enumerate(accuracies):
        own = [ok for ok, row in zip(right, cases, strict=True) if row["fold"] == str(fold)]
        assert accuracy == pytest.approx(np.mean(own))
    assert len(summary["worst"]) == min(right.count(False), 10)
    config = yaml.safe_load((classified / "recipe.yaml").read_text())
    assert config["data"]["init_args"]["folds"] == FOLDS
    for name in ("folds.png", "confusion_matrix.png"):
        with Image.open(classified / name) as picture:
            assert min(picture.size) > 300


def test_cases_of_masks_are_scored_one_by_one(segmented, capsys):
    cases = rows_of(segmented / "cases.csv")
    summary = json.loads((segmented / "summary.json").read_text())
    assert len(cases) == 8 * 2  # classes of interest
    per_case = [
        np.mean(numbers([r for r in cases if r["case"] == case], "dice"))
        for case in sorted({row["case"] for row in cases})
    ]
    assert summary["cases"] == 8
    assert summary["over_cases"]["dice"]["mean"] == pytest.approx(np.mean(per_case))
    assert summary["over_cases"]["dice"]["sd"] == pytest.approx(np.std(per_case, ddof=1))
    row = summary["per_class"][1]
    dices = numbers([r for r in cases if r["class"] == row["class"]], "dice")
    assert row["dice"] == {
        "n": len(dices),
        "mean": pytest.approx(np.mean(dices)),
        "sd": pytest.approx(np.std(dices, ddof=1)),
    }
    worst = [entry["dice"] for entry in summary["worst"]]
    assert worst == sorted(worst)
    assert worst[0] == pytest.approx(min(per_case))


def test_the_last_epoch_is_taken_where_that_is_asked_for(segmented):
    for fold in range(FOLDS):
        split = rows_of(segmented / f"fold{fold}" / "split.csv")
        assert {row["split"] for row in split} == {"train", "test"}
        report = json.loads((segmented / f"fold{fold}" / "metrics.json").read_text())
        assert set(report) == {"test"}
        files = [segmented / f"fold{fold}" / "checkpoints" / f"{n}.ckpt" for n in ("best", "last")]
        best, last = (torch.load(file, weights_only=True)["state_dict"] for file in files)
        assert all(torch.equal(best[key], last[key]) for key in last)
    assert read_record(segmented).choose == "last"


def test_all_folds_predict_the_mean_of_their_probabilities(classified, segmented):
    image = torch.randn(3, 3, 32, 32)
    joined = finished_run(classified, None).load()
    alone = [finished_run(classified / f"fold{fold}", "best").load() for fold in range(FOLDS)]
    for task in (joined, *alone):
        task.tta = "hflip"
    with torch.no_grad():
        found = joined.predict_step((image,), 0)
        mean = torch.stack([task.predict_step((image,), 0) for task in alone]).mean(0)
    torch.testing.assert_close(found, mean)
    joined = finished_run(segmented, None).load()
    alone = [finished_run(segmented / f"fold{fold}", "last").load() for fold in range(FOLDS)]
    with torch.no_grad():
        mean = torch.stack([task(image).softmax(1) for task in alone]).mean(0)
    found = np.stack(joined.segment(list(image), [(32, 32)] * 3))
    # classes with nearly equal probabilities may be swapped
    clear = mean.topk(2, 1).values.diff(dim=1).abs()[:, 0].numpy() > 1e-4
    assert (found == mean.argmax(1).numpy())[clear].all()


def test_predict_takes_the_folder_as_a_run(classified, segmented, photos, scans, tmp_path):
    out = tmp_path / "answers.csv"
    assert main(["predict", str(classified), str(photos / "fine"), "--out", str(out)]) == 0
    image = photos / "fine" / "p0_0.png"
    expected = []
    for fold in range(FOLDS):
        alone = tmp_path / f"{fold}.csv"
        args = [str(classified / f"fold{fold}"), str(image), "--out", str(alone)]
        assert main(["predict", *args]) == 0
        (row,) = rows_of(alone)
        both = {row[f"label_{k}"]: float(row[f"probability_{k}"]) for k in (1, 2)}
        expected.append(both)
    row = next(row for row in rows_of(out) if Path(row["path"]).name == "p0_0.png")
    mean = np.mean([answer[row["label"]] for answer in expected])
    assert float(row["probability"]) == pytest.approx(mean, abs=1e-5)
    masks = tmp_path / "masks"
    args = ["predict", str(segmented), str(scans / "images"), "--out", str(masks)]
    assert main([*args, "--masks", str(scans / "masks")]) == 0
    assert len(rows_of(masks / "cases.csv")) == 16
    record = json.loads((masks / "prediction.json").read_text())
    assert [Path(file).name for file in record["checkpoints"]] == ["last.ckpt"] * FOLDS


def test_an_interrupted_cross_validation_goes_on_and_ends_as_if_nothing_had_happened(
    classified, photos, tmp_path, in_this_process, monkeypatch, capsys
):
    out, task = tmp_path / "cv", vimamba.tasks.Classification
    step = task.training_step

    def interrupted_step(self, batch, batch_idx):
        if (out / "fold0" / "export").exists():  # in the second fold
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(task, "training_step", interrupted_step)
        assert main(options(photos, out, *CLASSIFY)) == 130
    assert f"vimamba cross-validate --resume {out}" in capsys.readouterr().out
    assert read_record(out).finished == [0]
    first = (out / "fold0" / "metrics.json").stat().st_mtime_ns
    assert not (out / "cases.csv").exists()
    assert main(options(photos, out, "--seed", "4", *CLASSIFY)) == 2
    assert "--seed 4: " in capsys.readouterr().err
    in_this_process.clear()
    assert main(options(photos, out, *CLASSIFY)) == 0  # the same command
    assert in_this_process == [["--resume", str(out / "fold1")]]
    assert (out / "fold0" / "metrics.json").stat().st_mtime_ns == first
    assert (out / "cases.csv").read_text() == (classified / "cases.csv").read_text()
    in_this_process.clear()
    assert main(["cross-validate", "--resume", str(out)]) == 0
    assert in_this_process == []


CHILD = """
import signal, sys, time
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
open(sys.argv[1], "w").close()
end = time.monotonic() + 60
while not stopped and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(0.5)  # a second signal would be counted, too
sys.exit(130 if len(stopped) == 1 else 1)
"""


def test_a_training_gets_a_signal_to_stop_once(tmp_path, monkeypatch):
    monkeypatch.undo()  # tests the separate process
    started = tmp_path / "started"
    child = [sys.executable, "-c", CHILD, str(started)]
    monkeypatch.setattr(cross_validation, "fit_command", lambda args: child)

    def interrupt():
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert cross_validation.run_fit([]) == 130
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
def test_no_training_is_left_behind_by_a_process_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.undo()  # tests the separate process
    started, ended = tmp_path / "started", tmp_path / "ended"
    child = CHILD.replace("sys.exit(", f"open({str(ended)!r}, 'w').close(); sys.exit(")
    command = [sys.executable, "-c", child, str(started)]
    monkeypatch.setattr(cross_validation, "fit_command", lambda args: command)
    # a fork has imported everything already
    fork = multiprocessing.get_context("fork")
    parent = fork.Process(target=cross_validation.run_fit, args=([],))
    parent.start()
    while not started.exists():
        time.sleep(0.05)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 50  # without the signal, the child would take 60 s
    while not ended.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.exists()


@pytest.mark.slow
def test_a_real_process_stops_at_once_and_leaves_no_training_behind(photos, tmp_path, monkeypatch):
    out = tmp_path / "cv"
    code = "import sys; from vimamba.cli import main; sys.exit(main())"
    args = options(photos, out, "--model", "test_vit")
    args[args.index("--epochs") + 1] = "5000"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "2/5000" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"vimamba cross-validate --resume {out}" in rest
    assert read_record(out).finished == []
    assert (out / "fold0" / "checkpoints" / "last.ckpt").exists()


def test_two_at_once_are_kept_apart(photos, classified, capsys):
    with lock_folder(classified):
        assert main(["cross-validate", "--resume", str(classified)]) == 2
    assert f"'{classified}' is written by" in capsys.readouterr().err


def test_validate_scores_the_cases_of_a_fold(segmented, tmp_path, capsys):
    run = segmented / "fold0"
    results = tmp_path / "m.json"
    assert main(["validate", str(run), "--ckpt", "last", "--results", str(results)]) == 2
    assert f"score the test split: vimamba test {run}" in capsys.readouterr().err


def test_a_fold_by_itself_has_the_scores_of_its_cases(scans, tmp_path, capsys):
    out = tmp_path / "run"
    args = options(scans, out, *SEGMENT)[1:]
    args[args.index("--folds")] = "--data.folds"
    assert main(["fit", *args, "--data.fold", "1"]) == 0
    cases = rows_of(out / "cases_val.csv")
    assert len(cases) == 4 * 2
    assert set(cases[0]) == {"case", "class", "dice", "hd95", "surface_dice"}
    (out / "cases_val.csv").unlink()
    capsys.readouterr()
    assert main(["test", str(out)]) == 2
    assert f"score the val split: vimamba validate {out}" in capsys.readouterr().err
    assert main(["validate", str(out)]) == 0
    assert [row["case"] for row in rows_of(out / "cases_val.csv")] == [row["case"] for row in cases]
    assert "the best epoch was chosen on these images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cross-validate", "--data", "{photos}"], "--out FOLDER is required"),
        (["cross-validate", "--resume", "{photos}"], "there is no cross-validation"),
        (["cross-validate", "--resume", "x", "--seed", "1"], "give no others"),
        (["cross-validate", "--data", "{photos}", "--out", "{photos}"], "holds files but no cross"),
        (["cross-validate", "--data", "{photos}", "--out", "x", "--folds", "1"], "at least 2"),
        (["cross-validate", "--data", "{photos}", "--out", "x", "--folds", "99"], "into folds=99"),
        (["cross-validate", "--data", "{photos}", "--out", "x", "--data.fold", "1"], "fold is for"),
        (["cross-validate", "--data", "{photos}", "--out", "x", "--dry-run"], "--dry-run is for"),
        (["cross-validate", "--data", "nowhere", "--out", "x"], "nowhere' is not a folder"),
        (["cross-validate", "--data", "{photos}", "--out", "x", "--epoch", "1"], "is unknown"),
        (["fit", "--data", "{photos}", "--folds", "5"], "--folds is for `vimamba cross-validate`"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_ends_with_2(args, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [arg.format(photos=photos) for arg in args]
    if "--model" not in given and "--resume" not in given:
        given += ["--model", "test_vit", "--img-size", "32"]
    assert main(given) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "x").exists()


def test_unfinished_folds_do_not_predict(classified, photos, tmp_path, capsys):
    out = tmp_path / "cv"
    out.mkdir()
    (out / "cross_validation.json").write_text(
        json.dumps({"folds": 2, "choose": "inner", "finished": [0]})
    )
    assert main(["predict", str(out), str(photos)]) == 2
    assert "fold 1 is not finished" in capsys.readouterr().err
    (out / "cross_validation.json").write_text('{"folds": "two"}')
    assert main(["predict", str(out), str(photos)]) == 2
    assert "is not a record of a cross-validation" in capsys.readouterr().err
    args = ["predict", str(classified), str(photos), "--ckpt", "x.ckpt"]
    assert main([*args, "--out", str(tmp_path / "p.csv")]) == 2
    assert "it must be best or last" in capsys.readouterr().err
