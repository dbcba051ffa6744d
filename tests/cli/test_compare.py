"""`vimamba compare`: the tables agree with the files of the runs."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from tests.bench_worker import PLAN
from vimamba import console
from vimamba.cli import main
from vimamba.runs import differing, flatten, read_run


@pytest.fixture(scope="module")
def other(tmp_path_factory, recipe):
    """A run of two epochs with another rate, half of the images and no test split."""
    out = tmp_path_factory.mktemp("runs") / "short"
    options = ["--epochs", "2", "--lr", "0.02", "--limit", "12", "--data.test_fraction", "0"]
    assert main(["fit", "-c", str(recipe), "--out", str(out), *options]) == 0
    return out


@pytest.fixture
def unfinished(run, tmp_path):
    """The files of the run after two of its epochs."""
    out = tmp_path / "stopped"
    shutil.copytree(run, out)
    rows = read_csv(run / "metrics.csv")[:2]
    with (out / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    record = json.loads((run / "run.json").read_text()) | {"finished": False}
    record["best"] = {"step": 8, "metric": "val/accuracy", "value": float(rows[1]["val/accuracy"])}
    (out / "run.json").write_text(json.dumps(record))
    for name in ("metrics.json", "export", "curves.png"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return out


@pytest.fixture
def folds(run, tmp_path):
    """A cross-validation of two folds, the same run except for the scores 0.6 and 0.8."""
    out = tmp_path / "cv"
    for fold, accuracy in enumerate((0.6, 0.8)):
        shutil.copytree(run, out / f"fold{fold}")
        report = json.loads((run / "metrics.json").read_text())
        report["test"] = {**report.get("test", report.get("val")), "accuracy": accuracy}
        (out / f"fold{fold}" / "metrics.json").write_text(json.dumps(report))
    record = {"folds": 2, "choose": "inner", "finished": [0, 1]}
    (out / "cross_validation.json").write_text(json.dumps(record))
    return out


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compared(capsys, *args):
    capsys.readouterr()
    assert main(["compare", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["runs"]


@pytest.mark.parametrize("terminal", [False, True])
def test_differing_settings_come_first_on_80_columns(run, other, terminal, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "is_terminal", lambda: terminal)
    assert main(["compare", str(run), str(other)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    settings, scores = text.split("scores, those of validation")
    assert all(word in settings for word in ("lr", "epochs", "limit", "0.003", "0.02"))
    # settings that are equal in both, or that only locate them
    assert not any(word in settings for word in ("batch", "root_dir", "ema", "seed"))
    assert "test/accuracy" in scores
    assert "finished" in scores


def test_the_scores_are_those_of_the_best_checkpoint(run, other, capsys):
    for folder, row in zip((run, other), compared(capsys, run, other), strict=True):
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        measured = read_csv(folder / "metrics.csv")[best["epoch"]]
        assert row["best_epoch"] == best["epoch"] + 1
        for name in ("val/accuracy", "val/loss"):
            assert row["scores"][name] == float(measured[name])
        weights = (v for k, v in best["state_dict"].items() if k.startswith("net."))
        assert row["parameters"] == sum(weight.numel() for weight in weights)
        seconds = sum(float(line["seconds"]) for line in read_csv(folder / "metrics.csv"))
        assert row["seconds"] == pytest.approx(seconds, abs=1e-3)
        scored = json.loads((folder / "metrics.json").read_text())
        found = scored["test"]["accuracy"] if "test" in scored else None
        assert row["scores"]["test/accuracy"] == found


def test_a_metric_is_asked_for_by_either_name(run, other, capsys):
    for name in ("macro_f1", "val/macro_f1"):
        rows = compared(capsys, run, other, "--metric", name)
        assert {*rows[0]["scores"]} == {"val/macro_f1", "test/macro_f1"}
    assert main(["compare", str(run), str(other), "--metric", "dice"]) == 2
    assert "--metric dice: no run has it; choose from" in capsys.readouterr().err


def test_what_is_not_finished_says_how_far_it_came(run, unfinished, capsys):
    whole, part = compared(capsys, run, unfinished)
    assert whole["state"] == "finished"
    assert part["state"] == "unfinished: epoch 2 of 4"
    assert part["best_epoch"] == 2
    assert part["scores"]["test/accuracy"] is None
    (unfinished / "run.json").unlink()
    assert main(["compare", str(run), str(unfinished)]) == 0
    assert "its best epoch is unknown, there is no run.json" in capsys.readouterr().out


def test_folds_are_one_row_with_mean_and_deviation(run, folds, capsys):
    row = compared(capsys, run, folds)[1]
    assert row["scores"]["test/accuracy"] == pytest.approx(0.7)
    assert row["deviations"]["test/accuracy"] == pytest.approx(0.02**0.5)  # of 0.6 and 0.8
    assert row["state"] == "finished"
    assert main(["compare", str(run), str(folds)]) == 0
    assert "0.7000 ± 0.1414" in capsys.readouterr().out


@pytest.mark.draws
def test_files_hold_what_the_tables_do(run, other, folds, tmp_path, capsys):
    out = tmp_path / "comparison"
    assert main(["compare", str(run), str(other), str(folds), "--out", str(out)]) == 0
    rows = read_csv(out / "compare.csv")
    assert [row["run"] for row in rows] == ["straight", "short", "cv"]
    assert [row["model.init_args.optim.lr"] for row in rows] == ["0.003", "0.02", "0.003"]
    with Image.open(out / "compare.png") as picture:
        # white, axes and curves of at least three colors
        assert picture.width > picture.height
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    text = (out / "compare.md").read_text()
    assert text.count("| --- |") >= 2
    assert "| short | 2 | 0.02 |" in text


def test_what_is_no_run_is_refused_by_name(run, tmp_path, capsys):
    assert main(["compare", str(run), str(tmp_path)]) == 2
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err
    assert main(["compare", str(run), str(run.parent)]) == 2
    assert f"it holds runs, as {run}" in capsys.readouterr().err
    assert main(["compare", str(run)]) == 2
    assert "name at least two runs" in capsys.readouterr().err
    (tmp_path / "bench").mkdir()
    PLAN.write(tmp_path / "bench")
    assert main(["compare", str(tmp_path / "bench")]) == 2
    assert f"scanbench --report {tmp_path / 'bench'}" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.csv").write_text("epoch,step\n1,many\n")
    assert main(["compare", str(run), str(tmp_path / "damaged")]) == 2
    assert "metrics.csv cannot be read" in capsys.readouterr().err
    (tmp_path / "damaged" / "run.json").write_text('{"parameters": "many"}')
    assert main(["compare", str(run), str(tmp_path / "damaged")]) == 2
    assert "run.json: parameters is 'many'; expected" in capsys.readouterr().err


def test_a_wide_table_is_shown_in_parts(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    heads = ["run", *(f"setting_{number}" for number in range(6))]
    console.show_wide_table("title", heads, [["a", *("x" * 9 for _ in range(6))]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.split()[:1] == ["run"] for line in lines) == 3


def test_sizes_of_small_networks_differ_too():
    sizes = [console.millions(count) for count in (28_600_000, 25_346, 19_458, None)]
    assert sizes == ["28.60", "0.0253", "0.0195", "-"]


def test_settings_differ_by_value_and_place():
    one = flatten({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1}, {"e": 2}], "f": None})
    other = flatten({"a": {"b": 1, "c": [2, 1]}, "d": [{"e": 1}, {"e": 3}], "g": 5})
    assert one == {"a.b": 1, "a.c": [1, 2], "d.0.e": 1, "d.1.e": 2, "f": None}
    assert differing([one, other]) == ["a.c", "d.1.e", "g"]


def test_the_time_of_an_epoch_counts_once(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    text = "epoch,step,seconds\n0.5,2,3.0\n1,4,7.0\n1.5,6,2.0\n"
    (tmp_path / "run" / "metrics.csv").write_text(text)
    assert read_run(tmp_path / "run").seconds == 9
