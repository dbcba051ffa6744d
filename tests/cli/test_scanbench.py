"""`vimamba scanbench`: plan, resuming, errors, report; one bench is trained."""

import csv
import json
import shutil
from concurrent.futures import Future
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("scikit_posthocs")
from vimamba.cli import bench_report, bench_runs, main, scanbench
from vimamba.scanbench import pictures
from vimamba.scanbench.cost import Cost
from vimamba.scanbench.plan import read_mark, read_plan, write_mark
from vimamba.scanbench.running import INTERRUPTED, Outcome

ORDERS = ("raster", "cross", "local(window=2)")


class InThisProcess:
    """A pool that trains in the calling process."""

    def __init__(self, train):
        self.train = train

    def submit(self, job):
        future = Future()
        future.set_result(self.train(job))
        return future

    def interrupt(self):
        pass

    def close(self):
        pass


def pretend(job):
    """Write the files of a training, with a score that depends on order and seed."""
    gain = {"raster": 0.0, "cross": 0.01, "local(window=2)": -0.02}.get(job.trial.order, 0.0)
    accuracy = 0.9 + gain + 0.001 * (job.trial.seed % 3) * (1 + len(job.trial.order) % 2)
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "config.yaml").write_text(yaml.safe_dump(job.settings))
    rows = [{"class": name, "recall": accuracy, "f1": accuracy} for name in ("broad", "fine")]
    report = {"accuracy": accuracy, "macro_f1": accuracy - 0.1, "images": 4, "per_class": rows}
    (job.out / "metrics.json").write_text(json.dumps({"test": report}))
    write_mark(job.out, {"alike": 0.9, "code": 0})
    return Outcome(0, 1.0)


@pytest.fixture
def drawn():
    """Let `trained` draw real pictures, the slowest part."""


@pytest.fixture
def trained(monkeypatch, request):
    """Replace training, measuring and drawing; returns the trials of each call."""
    calls = []
    if "drawn" not in request.fixturenames:
        dot = Image.new("L", (1, 1))
        monkeypatch.setattr(pictures, "save", lambda figure, path: pretend_save(dot, path))

    def open_pool(given):
        calls.append([])

        def train(job):
            calls[-1].append(job.trial)
            return pretend(job)

        return InThisProcess(train)

    monkeypatch.setattr(scanbench, "open_pool", open_pool)
    monkeypatch.setattr(bench_report, "collect_costs", pretend_costs)
    return calls


def pretend_save(dot, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dot.save(path)


def pretend_costs(bench):
    cost = {order: Cost(1.0 + len(order), 20.0, 0.1) for order in bench.plan.orders}
    return dict.fromkeys(bench.plan.models, cost), "this machine"


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> Path:
    """Two classes of ten images."""
    root, rng = tmp_path_factory.mktemp("bench") / "stripes", np.random.default_rng(0)
    for name, step in (("broad", 8), ("fine", 2)):
        (root / name).mkdir(parents=True)
        for number in range(10):
            stripes = (np.arange(32) // step % 2 * 200)[None, :, None]
            pixels = (stripes + rng.integers(0, 50, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def options(data, out, *more, orders=ORDERS, seeds=("2",)):
    args = ["--data", data, "--model", "test_vmamba", "--orders", *orders, "--seeds", *seeds]
    args += ["--out", out, "--img-size", "32", "--epochs", "1", "--batch-size", "4"]
    args += ["--workers", "0", "--trainer.accelerator", "cpu", *more]
    return ["scanbench", *map(str, args)]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Text and pictures of a page."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.sources = [], []
        self.feed(path.read_text())
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_every_order_and_seed_is_a_run_and_the_report_holds_them(
    stripes, tmp_path, drawn, trained, capsys
):
    out = tmp_path / "bench"
    assert main(options(stripes, out, seeds=("3",))) == 0
    assert [(t.order, t.seed) for t in trained[0]] == [(o, s) for s in range(3) for o in ORDERS]
    rows = rows_of(out / "results.csv")
    assert len(rows) == 9
    row = next(r for r in rows if r["order"] == "cross" and r["seed"] == "1")
    assert float(row["accuracy"]) == pytest.approx(0.9 + 0.01 + 0.001 * 2)
    assert row["paths"] == "4"
    assert row["start"] == "scratch"
    said = capsys.readouterr().out
    assert "3 seeds are too few to show that an order is better than raster (" in said
    assert "largest difference 1.1 points, cross, 95 % interval 1.0 to 1.2" in said
    # 3 seeds: 2^-2, twice; six would do for one comparison, seven for two
    assert "the smallest p of 3 signed ranks is 0.25" in said
    assert "it takes at least 7 runs" in said
    page = Page(out / "report.html")
    assert "an order is better than raster" in page.text
    assert len(page.sources) >= 4  # points, classes, ranks, cost
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    text = (out / "report.md").read_text()
    for name in ("points", "classes", "ranks", "cost"):
        (path,) = (out / "pictures").glob(f"{name}_*.png")
        assert f"pictures/{path.name}" in text
        with Image.open(path) as picture:
            assert min(picture.size) > 250
    assert "test split was scored once" in text
    assert "| raster | 1 | 3 |" in text


def test_settings_of_runs_differ_in_order_and_seed_only(stripes, tmp_path, trained):
    out = tmp_path / "bench"
    kwargs = ("--model.model_kwargs", "{dims: [8, 16, 16, 16]}")
    assert main(options(stripes, out, "--", *kwargs)) == 0
    first, other = (
        yaml.safe_load((trial.folder(out) / "config.yaml").read_text())
        for trial in (trained[0][0], trained[0][4])
    )
    assert first["model"]["init_args"].pop("model_kwargs") == {
        "dims": [8, 16, 16, 16], "scan_order": "raster",
    }  # fmt: skip
    assert other["model"]["init_args"].pop("model_kwargs")["scan_order"] == "cross"
    assert (first.pop("seed_everything"), other.pop("seed_everything")) == (0, 1)
    assert first == other


def test_a_bench_goes_on_and_takes_more_orders_and_seeds(stripes, tmp_path, trained, capsys):
    out = tmp_path / "bench"
    assert main(options(stripes, out, orders=("cross", "raster"))) == 0
    shutil.rmtree(out / "test_vmamba" / "raster" / "seed-1")
    assert main(options(stripes, out, orders=("cross", "raster"))) == 0
    assert [(t.order, t.seed) for t in trained[1]] == [("raster", 1)]
    more = ["--orders", "spiral", "--seeds", "3", "--baseline", "spiral"]
    assert main(["scanbench", "--resume", str(out), *more]) == 0
    assert {(t.order, t.seed) for t in trained[2]} == {
        ("spiral", 0), ("spiral", 1), ("spiral", 2), ("cross", 2), ("raster", 2),
    }  # fmt: skip
    assert read_plan(out).orders == ("cross", "raster", "spiral")
    assert "than spiral" in capsys.readouterr().out
    assert main(["scanbench", "--report", str(out), "--score", "macro_f1"]) == 0
    assert len(trained) == 3  # nothing is left to train
    assert "macro F1" in (out / "report.md").read_text()


def test_a_changed_setting_is_refused_by_name(stripes, tmp_path, trained, capsys):
    out = tmp_path / "bench"
    assert main(options(stripes, out)) == 0
    assert main(options(stripes, out, "--epochs", "2")) == 2
    assert f"--epochs 2: {out} was begun with 1" in capsys.readouterr().err
    assert main(options(stripes, out, "--folds", "2")) == 2
    assert "--folds 2" in capsys.readouterr().err
    assert main(options(stripes, stripes)) == 2
    assert "holds files but no bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "3"], "--seed is for `vimamba fit`"),
        (["--seeds", "1", "1"], "--seeds 1 1"),
        (["--parallel", "2", "--ray", "auto"], "--parallel"),
        (["--baseline", "spiral"], "--baseline spiral is none of the orders"),
        (["--trainer.devices", "2"], "--parallel N"),
        (["--orders", "cros"], "'cros'"),
        (["--model", "resnet18", "--orders", "cross"], "scan_order"),
        (["--difference", "0"], "--difference"),
        (["--score", "wrong"], "--score wrong"),
        (["--gpus-per-run", "0.5"], "--ray"),
    ],
)
def test_what_cannot_be_is_refused_by_name(stripes, tmp_path, trained, capsys, more, said):
    assert main(options(stripes, tmp_path / "bench", *more)) == 2
    assert said in capsys.readouterr().err


def test_equal_paths_compare_like_with_like(stripes, tmp_path, trained, capsys):
    out = tmp_path / "bench"
    orders = ("cross", "raster", "omni")
    assert main(options(stripes, out, "--equal-paths", orders=orders)) == 0
    assert "leaves out omni (K = 8)" in capsys.readouterr().out
    assert {row["paths"] for row in rows_of(out / "results.csv")} == {"4"}
    assert "raster x 4" in (out / "report.md").read_text()
    assert main(["scanbench", "--resume", str(out), "--orders", "spiral"]) == 0
    assert {row["paths"] for row in rows_of(out / "results.csv")} == {"4"}


def test_equal_scores_are_pointed_out(stripes, tmp_path, trained, capsys):
    out = tmp_path / "bench"
    # `pretend` gives these two, whose names it does not know, the same scores
    orders = ("cross", "spiral", "zigzag")
    assert main(options(stripes, out, "--baseline", "spiral", orders=orders)) == 0
    said = capsys.readouterr().out
    assert "Every run of zigzag has exactly the score of spiral with the same seed." in said
    assert "How many seeds" in (out / "report.md").read_text()
    only = ("spiral", "zigzag")
    assert main(options(stripes, tmp_path / "equal", orders=only)) == 0
    assert "How many seeds" not in (tmp_path / "equal" / "report.md").read_text()


def test_failed_runs_are_reported_and_retried(stripes, tmp_path, trained, monkeypatch, capsys):
    out = tmp_path / "bench"

    def fail(job):
        if job.trial.order != "raster" or job.trial.seed == 0:
            return pretend(job)
        job.out.mkdir(parents=True)
        write_mark(job.out, {"code": 2, "error": "loss is not finite"})
        return Outcome(2, 1.0, "loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr(scanbench, "open_pool", lambda given: InThisProcess(fail))
        assert main(options(stripes, out)) == 1
    said = capsys.readouterr().out
    assert "failed: test_vmamba, raster, seed 1: loss is not finite" in said
    assert "loss is not finite" in (out / "report.md").read_text()
    assert main(options(stripes, out)) == 0
    assert [(t.order, t.seed) for t in trained[-1]] == [("raster", 1)]


def test_an_interrupted_bench_says_how_to_go_on(stripes, tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench"
    stop = InThisProcess(lambda job: Outcome(INTERRUPTED, 0.0))
    monkeypatch.setattr(scanbench, "open_pool", lambda given: stop)
    assert main(options(stripes, out)) == 130
    assert f"vimamba scanbench --resume {out}" in capsys.readouterr().out


def test_folds_are_blocks_to_rank_over(stripes, tmp_path, trained):
    out = tmp_path / "bench"
    assert main(options(stripes, out, "--folds", "3", seeds=("1",))) == 0
    assert len(trained[0]) == 9
    config = yaml.safe_load((out / "test_vmamba/cross/seed-0/fold-2/config.yaml").read_text())
    data = config["data"]["init_args"]
    assert (data["fold"], data["folds"], data["fold_as"]) == (2, 3, "test")
    text = (out / "report.md").read_text()
    assert "Over 3 data sets, models and folds" in text
    assert "1 seed x 3 folds" in text


def test_several_benches_have_a_joint_report(stripes, tmp_path, trained, capsys):
    outs = [tmp_path / name for name in ("one", "two", "three")]
    assert main(options(stripes, outs[0])) == 0
    for out in outs[1:]:
        shutil.copytree(outs[0], out)
    joint = tmp_path / "joint"
    assert main(["scanbench", "--report", *map(str, outs), "--out", str(joint)]) == 0
    # all blocks agree: 12 / (3 * 3 * 4) * (3^2 + 6^2 + 9^2) - 3 * 3 * 4 = 6, p = exp(-3)
    assert "Friedman's chi-squared 6.00, p = 0.05)" in capsys.readouterr().out
    assert len(rows_of(joint / "results.csv")) == 18
    text = (joint / "report.md").read_text()
    # benches of one data set are told apart by their folders
    assert "| order | K | stripes (one) | stripes (two) | stripes (three) | mean rank |" in text
    assert "| cross | 4 | 91.10 | 91.10 | 91.10 | 1.00 |" in text
    assert main(["scanbench", "--report", *map(str, outs)]) == 2


def test_orders_with_as_many_paths_are_ranked_by_themselves(stripes, tmp_path, trained, capsys):
    out = tmp_path / "bench"
    orders = ("raster", "cross", "hilbert", "serpentine")
    assert main(options(stripes, out, orders=orders)) == 0
    said = capsys.readouterr().out
    assert "Over 2 seeds of one data set (from scratch, K = 4)" in said
    assert "K = 1" not in said  # nothing to compare
    # all three differences have one sign where both seeds do, which half of all pairs have
    assert "1.5 of 3 intervals would" in said


def test_a_bench_is_trained_from_equal_weights_on_equal_images(stripes, tmp_path, monkeypatch):
    out = tmp_path / "bench"
    monkeypatch.setattr(scanbench, "open_pool", lambda given: InThisProcess(bench_runs.train))
    assert main(options(stripes, out, orders=("cross", "raster"))) == 0
    runs = {
        (o, s): out / "test_vmamba" / o / f"seed-{s}" for o in ("cross", "raster") for s in (0, 1)
    }
    divisions = {key: (run / "split.csv").read_text() for key, run in runs.items()}
    assert divisions["cross", 0] == divisions["raster", 0] != divisions["cross", 1]
    for run in runs.values():
        mark, record = read_mark(run), json.loads((run / "run.json").read_text())
        assert mark["code"] == 0
        assert 0.5 < mark["alike"] <= 1
        assert record["finished"]
        assert set(json.loads((run / "metrics.json").read_text())) == {"test"}  # scored once
        assert "epoch 1/1" in (run / "log.txt").read_text()
    costs = json.loads((out / "costs.json").read_text())["costs"]["test_vmamba"]
    assert costs["cross"]["gflops"] > costs["raster"]["gflops"] > 0
    assert all(cost["milliseconds"] > 0 for cost in costs.values())
    assert all(cost["memory"] is None or cost["memory"] >= 0 for cost in costs.values())
    before = (out / "test_vmamba/cross/seed-0/metrics.json").stat().st_mtime_ns
    assert main(["scanbench", "--resume", str(out)]) == 0
    assert (out / "test_vmamba/cross/seed-0/metrics.json").stat().st_mtime_ns == before
    # these are ordinary runs
    assert main(["validate", str(runs["raster", 1]), "--workers", "0"]) == 0
    state = torch.load(runs["raster", 1] / "checkpoints/best.ckpt", weights_only=True)
    assert any(key.endswith("A_log") for key in state["state_dict"])
