import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import vimamba
from vimamba.cli import main

ROOT = Path(__file__).parents[1]
# everything random is on: augmentation, drop path, mixing; and the average of the weights
RECIPE = {
    "seed_everything": 3,
    "model": {
        "class_path": "vimamba.tasks.Classification",
        "init_args": {
            "model": "test_vit",
            "model_kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
            "drop_path_rate": 0.2,
            "optim": {"lr": 0.003, "warmup_epochs": 1, "ema": 0.9},
            "objective": {"mixup": 0.2, "cutmix": 1.0},
        },
    },
    "data": {
        "class_path": "vimamba.data.ImageFolder",
        "init_args": {"img_size": 16, "batch_size": 8, "workers": 0},
    },
    "trainer": {"max_epochs": 4, "accelerator": "cpu", "devices": 1},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Three classes of 16 noisy stripes each."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    rng = np.random.default_rng(0)
    for name, step in (("broad", 8), ("fine", 2), ("middle", 4)):
        (root / name).mkdir(parents=True)
        for number in range(16):
            stripes = (np.arange(24) // step % 2 * 200)[None, :, None]
            pixels = (stripes + rng.integers(0, 50, (20, 24, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, folder) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "stripes.yaml"
    content = json.loads(json.dumps(RECIPE))
    content["data"]["init_args"]["root"] = str(folder)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory, recipe) -> Path:
    """A finished run of four epochs."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert main(["fit", "-c", str(recipe), "--out", str(out)]) == 0
    return out


def command(*args, **kwargs):
    """A real process with its output in a pipe."""
    code = [sys.executable, "-c", "import sys; from vimamba.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        **kwargs,
    )


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_everything_in_its_folder(run):
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    left = {name for name in left if not name.startswith("tensorboard/")}
    assert left == {
        "config.yaml", "metrics.csv", "metrics.json", "split.csv", "curves.png", "samples.png",
        "confusion_matrix.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "export/config.json", "export/model.safetensors",
    }  # fmt: skip
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert {"lr", "train/loss", "val/loss", "val/accuracy", "val/ece"} <= set(rows[0])
    report = json.loads((run / "metrics.json").read_text())["test"]
    assert report["images"] == 6
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


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(run, recipe, tmp_path):
    for seed, equal in ((3, True), (4, False)):
        out = tmp_path / str(seed)
        args = ["fit", "-c", str(recipe), "--out", str(out), "--seed", str(seed)]
        assert main([*args, "--workers", "2"]) == 0  # nor do worker processes change anything
        last = Path("checkpoints") / "last.ckpt"
        assert same_weights(out / last, run / last) == equal


@pytest.mark.parametrize("moment", ["first epoch", "within an epoch", "end of an epoch"])
def test_ctrl_c_leaves_a_checkpoint_that_continues_bit_for_bit(
    moment, run, recipe, tmp_path, monkeypatch
):
    import vimamba.tasks

    task, out = vimamba.tasks.Classification, tmp_path / "run"
    step, epoch_end = task.training_step, task.on_validation_epoch_end
    epoch = 0 if moment == "first epoch" else 2

    def interrupt(self):
        if self.current_epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    def interrupted_step(self, batch, batch_idx):
        if batch_idx == 2:
            interrupt(self)
        return step(self, batch, batch_idx)

    def interrupted_end(self):
        epoch_end(self)
        interrupt(self)

    with monkeypatch.context() as patch:
        if moment == "end of an epoch":
            patch.setattr(task, "on_validation_epoch_end", interrupted_end)
        else:
            patch.setattr(task, "training_step", interrupted_step)
        assert main(["fit", "-c", str(recipe), "--out", str(out)]) == 130
    last = out / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] <= epoch
    assert not (out / "export").exists()
    args = ["-c", str(recipe), "--out", str(out), "--resume", "auto"]
    if moment == "end of an epoch":
        args = ["--resume", str(out)]  # the run folder knows its recipe
    assert main(["fit", *args]) == 0
    for name in ("last.ckpt", "best.ckpt"):
        assert same_weights(out / "checkpoints" / name, run / "checkpoints" / name)
    scores = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file.open())]
        for file in (out / "metrics.csv", run / "metrics.csv")
    ]
    assert scores[0] == scores[1]


def test_sigint_ends_a_real_process_with_a_checkpoint(recipe, tmp_path):
    out = tmp_path / "run"
    process = command("fit", "-c", recipe, "--out", out, "--epochs", 500)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch   2/500"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"vimamba fit --resume {out}" in rest
    assert "Traceback" not in errors
    assert (out / "checkpoints" / "last.ckpt").exists()
    text = "".join(lines) + rest
    # plain lines when not a terminal: no colours, no bars, no rewriting
    assert not set("\x1b\r│━") & set(text)
    assert "Seed set" not in text + errors


def test_a_second_run_does_not_overwrite_the_first(run, recipe, capsys):
    assert main(["fit", "-c", str(recipe), "--out", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_resume_auto_starts_a_run_that_is_not_there(recipe, tmp_path):
    args = ["fit", "-c", str(recipe), "--out", str(tmp_path / "new"), "--resume", "auto"]
    assert main([*args, "--epochs", "1", "--limit", "8"]) == 0


def test_dry_run_writes_nothing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--model", "test_vit", "--img-size", "32", "--workers", "0", "--dry-run"]
    assert main(["fit", "--data", str(folder), *args]) == 0
    assert "batch (36, 3, 32, 32)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_summary_names_classes_counts_and_sizes(run, recipe, tmp_path, capsys):
    main(["fit", "-c", str(recipe), "--out", str(tmp_path / "x"), "--epochs", "1"])
    out = capsys.readouterr().out
    assert "3 classes, one label per image" in out
    assert "image size 20x24; channel mean 0.4" in out
    assert f"next: vimamba predict {tmp_path / 'x'}" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--data", "nowhere"], "nowhere' is not a folder"),
        (["fit"], "--data PATH is required"),
        (["fit", "--data", "{folder}", "--model", "test_vti"], "close names are test_vit"),
        (["fit", "--data", "{folder}", "--model.modell", "x"], "Option 'modell' is not accepted"),
        (["fit", "-c", "{bad}"], "Option 'learning_rate' is not accepted"),
        (["fit", "-c", "no.yaml"], "no.yaml"),
        (["fit", "--data", "{folder}", "--epochs", "many"], "max_epochs"),
        (["fit", "--resume", "{folder}"], "there is no"),
        (["fit", "--data", "{broken}", "--model", "test_vit"], "2.png cannot be read"),
        (["fit", "--data", "list.csv"], "list.csv' is not a CSV file"),
        (["test", "{folder}"], "is not a run folder"),
        (["test", "{run}", "--ckpt", "final"], "--ckpt final"),
        (["test", "{run}", "--data", "{other}"], "the run was trained on"),
        (["predict", "{run}", "nowhere.png"], "nowhere.png is neither a file nor a folder"),
        (["predict", "{run}", "{folder}", "--out", "x.txt"], "must end in .csv or .json"),
        (["identify", "nowhere.pth"], "nowhere.pth is not a file"),
        (["visualise", "scan", "--order", "x", "--size", "14", "-o", "x.png"], "HEIGHTxWIDTH"),
        (["visualise", "scan", "--order", "hilbrt", "-o", "x.png"], "hilbrt"),
        (["list-models", "no_such_model"], "no model fits"),
        (["train"], "unknown command 'train'"),
    ],
)
def test_a_mistake_is_named_and_ends_with_2(args, message, request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"bad": tmp_path / "bad.yaml", "broken": tmp_path / "broken", "other": tmp_path / "o"}
    places["bad"].write_text("model: {init_args: {learning_rate: 1}}\ndata: {init_args: {root: x}}")
    for place, name in (("broken", "a"), ("broken", "b"), ("other", "a"), ("other", "b")):
        (places[place] / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(places[place] / name / f"{number}.png")
    (places["broken"] / "b" / "2.png").write_text("no picture")
    for name in ("folder", "run"):
        if f"{{{name}}}" in args:
            places[name] = request.getfixturevalue(name)
    assert main([arg.format(**places) for arg in args]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")


def test_an_image_that_breaks_later_is_named_by_a_worker_process(folder, tmp_path, capsys):
    from vimamba.cli import reporting

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    out = tmp_path / "run"
    args = ["--model", "test_vit", "--img-size", "32", "--workers", "1", "--out", str(out)]

    def spoil(data):
        for path in copy.rglob("1*.png"):
            path.write_text("no picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "show_data", spoil)
        assert main(["fit", "--data", str(copy), *args]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: image ")
    assert "cannot be read" in error


def test_a_bug_shows_its_traceback(folder, monkeypatch):
    monkeypatch.setattr("vimamba.data.ImageFolder.read", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--data", str(folder), "--model", "test_vit"])


def test_validate_and_test_score_the_checkpoint_asked_for(run, capsys, tmp_path):
    before = json.loads((run / "metrics.json").read_text())["test"]
    results = tmp_path / "m.json"
    assert main(["test", str(run), "--results", str(results)]) == 0
    after = json.loads(results.read_text())["test"]
    assert {k: after[k] for k in before} == before
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


def test_our_own_model_trains_the_same_way_twice(folder, tmp_path):
    args = ["--model", "test_vim", "--img-size", "32", "--epochs", "1", "--workers", "0"]
    for name in "ab":
        assert main(["fit", "--data", str(folder), *args, "--out", str(tmp_path / name)]) == 0
    last = Path("checkpoints") / "last.ckpt"
    assert same_weights(tmp_path / "a" / last, tmp_path / "b" / last)


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
    # timm resizes with Pillow, which smooths; the pictures are 20 pixels high, the input is 16
    assert rows[0]["top"][0]["probability"] == pytest.approx(probability, abs=0.1)


def test_multi_label_lists_go_all_the_way(folder, tmp_path):
    lines = ["path,label,group"]
    for number in range(16):
        lines += [f"{folder}/fine/{number}.png,fine;narrow,p{number // 2}"]
        lines += [f"{folder}/broad/{number}.png,{'' if number % 4 else 'broad'},q{number // 2}"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "run"
    args = ["--model", "test_vit", "--img-size", "16", "--epochs", "2", "--workers", "0"]
    args += ["--model.model_kwargs", "{patch_size: 8, depth: 1}", "--out", str(out)]
    args += ["--batch-size", "8", "--model.objective.class_weights", "balanced"]
    assert main(["fit", "--data", str(tmp_path / "list.csv"), *args]) == 0
    report = json.loads((out / "metrics.json").read_text())["test"]
    assert {"exact_match", "auroc", "ece"} <= set(report)
    assert (
        main(["predict", str(out), str(folder / "fine" / "0.png"), "--out", str(out / "p.csv")])
        == 0
    )


def test_medmnist_files_are_recognised(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(tmp_path / "mnist.npz", **arrays)
    out = tmp_path / "run"
    args = ["--model", "test_vim", "--img-size", "28", "--epochs", "1", "--workers", "0"]
    args += ["--data.in_chans", "1", "--out", str(out), "--batch-size", "8"]
    assert main(["fit", f"--data={tmp_path / 'mnist.npz'}", *args]) == 0
    assert not (out / "split.csv").exists()
    assert main(["test", str(out)]) == 0


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict", "list-models", "identify"])
def test_help_shows_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"  vimamba {name}" in capsys.readouterr().out


def test_top_level_help_and_version(capsys):
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    assert "vimamba predict RUN" in out
    assert out.endswith(f"vimamba {vimamba.__version__}\n")


def test_list_models_is_quick_and_says_what_matters():
    process = command("list-models", "vim_tiny*", "--json")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["vim_tiny_patch16_224"]["top1"] == 76.1
    assert rows["vim_tiny_patch16_224"]["license"]
    assert 6e6 < rows["vim_tiny_patch16_224"]["params"] < 8e6
    code = (
        "import sys; from vimamba.cli import main; main(['list-models', 'test_vim']); "
        "assert 'pytorch_lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_visualise_draws_a_scan_order(tmp_path):
    out = tmp_path / "hilbert.png"
    assert main(["visualise", "scan", "--order", "hilbert", "--size", "6x5", "-o", str(out)]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_accepted_and_found_by_its_name(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = path.relative_to(ROOT / "configs").with_suffix("")
    assert main(["fit", "-c", str(name), "--data", "somewhere", "--print_config"]) == 0
    assert "class_path: vimamba.tasks.Classification" in capsys.readouterr().out
