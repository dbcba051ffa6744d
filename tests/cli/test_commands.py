import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import vimamba
from vimamba.cli import _extra_of, _last_line, main
from vimamba.console import command_line
from vimamba.tasks import Classification, NotFiniteError
from vimamba_command import lists_stored_models

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--data", "nowhere"], "nowhere' is not a folder"),
        (["fit"], "--data PATH is required"),
        (["fit", "--data", "{folder}", "--model", "test_vti"], "close names are test_vit"),
        (
            ["fit", "--data", "{folder}", "--model.modell", "x"],
            "--model.modell is unknown; close options are --model.model",
        ),
        (["fit", "-c", "{bad}"], "--model.learning_rate is unknown"),
        (["fit", "-c", "no.yaml"], "no.yaml"),
        (
            ["fit", "--data", "{folder}", "--epochs", "many"],
            "--epochs many: expected a whole number",
        ),
        (["fit", "--resume", "{folder}"], "there is no"),
        (["fit", "--data", "{broken}", "--model", "test_vit"], "2.png cannot be read"),
        (["fit", "--data", "list.csv"], "list.csv' is not a CSV file"),
        (["test", "{folder}"], "is not a run folder"),
        (["test", "{run}", "--ckpt", "final"], "--ckpt final"),
        (["test", "{run}", "--data", "{other}"], "are not among the classes"),
        (["predict", "{run}", "nowhere.png"], "nowhere.png is neither a file nor a folder"),
        (["predict", "{run}", "{folder}", "--out", "x.txt"], "must end in .csv or .json"),
        (["identify", "nowhere.pth"], "nowhere.pth is not a file"),
        (["visualize", "scan", "--order", "x", "--size", "14", "-o", "x.png"], "HEIGHTxWIDTH"),
        (["visualize", "scan", "--order", "hilbrt", "-o", "x.png"], "hilbrt"),
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
    from vimamba.tasks.classification import report as classifying

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    out = tmp_path / "run"
    args = ["--model", "test_vit", "--img-size", "32", "--workers", "1", "--out", str(out)]

    def spoil(data):
        for path in copy.rglob("1*.png"):
            path.write_text("no picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifying, "show_data", spoil)
        assert main(["fit", "--data", str(copy), *args]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: image ")
    assert "cannot be read" in error


def test_errors_of_worker_processes_become_one_line():
    traceback = """Caught DataError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1, in f
"""
    text = f"{traceback}vimamba.data.errors.DataError: image a.png cannot be read:\nit is short\n"
    assert _last_line(text) == "image a.png cannot be read: it is short"
    missing = ImportError(f"{traceback}ModuleNotFoundError: No module named 'nibabel'")
    assert _extra_of(missing) == "medical"
    assert _last_line(str(missing)) == "No module named 'nibabel'"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--epochs abc", "--epochs abc: expected a whole number"),
        ("--epochs 0", "--epochs 0 must be at least 1"),
        ("--lr abc", "--lr abc: expected a number"),
        ("--batch-size x", "--batch-size x: expected a whole number"),
        ("--epoch 3", "--epoch is unknown; close options are --epochs"),
        ("--model.optim.lrr 1", "--model.optim.lrr is unknown"),
        ("--model vim_tiny_patch16_224 --img-size 8", "img_size=(8, 8) is smaller than a patch"),
        ("--model test_vim --model.model_kwargs {scan_order:hilbertt}", "'hilbertt' is unknown"),
        (
            "--model test_vim --model.model_kwargs {scan_order:[cross,hilbertt]}",
            "close names are hilb",
        ),
        ("--model test_vim --pretrained", "pretrained weights of 'test_vim' cannot be loaded"),
        ("--model test_vim --model.objective.class_weights [1,2]", "2 values for 3 classes"),
    ],
)
def test_mistakes_are_reported_in_a_line_that_names_the_option(args, message, folder, capsys):
    words = args.replace("scan_order:", "scan_order: ").split(" ")
    if "{scan_order:" in words:  # one word with a space in it
        words[-2:] = [" ".join(words[-2:])]
    assert main(["fit", "--data", str(folder), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_one_class_is_not_enough(folder, tmp_path, capsys):
    shutil.copytree(folder / "fine", tmp_path / "only" / "fine")
    assert main(["fit", "--data", str(tmp_path / "only"), "--model", "test_vim"]) == 2
    assert "only one class, ['fine']" in capsys.readouterr().err


def test_classes_missing_in_a_split_are_noted(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "fine").iterdir())[2:]:
        path.unlink()
    args = ["--model", "test_vit", "--img-size", "32", "--workers", "0", "--dry-run"]
    assert main(["fit", "--data", str(tmp_path / "data"), *args]) == 0
    assert "note: no image of fine in val, fine in test" in capsys.readouterr().out


def test_commands_to_type_are_quoted(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/vimamba")
    assert command_line("fit", "--resume", "my run") == "vimamba fit --resume 'my run'"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.argv", [".venv/bin/vimamba"])
    assert command_line("fit") == ".venv/bin/vimamba fit"


def test_a_bug_shows_its_traceback(folder, monkeypatch):
    monkeypatch.setattr("vimamba.data.ImageFolder.read", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--data", str(folder), "--model", "test_vit"])


@pytest.mark.parametrize(
    "name", ["fit", "cross-validate", "validate", "test", "predict", "list-models", "identify"]
)
def test_help_shows_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"  vimamba {name}" in capsys.readouterr().out


def test_top_level_help_and_version(capsys):
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    assert "vimamba predict RUN" in out
    assert out.endswith(f"vimamba {vimamba.__version__}\n")


def test_help_and_version_come_without_torch():
    for option in ("--help", "--version"):
        code = (
            f"import sys; sys.argv = ['vimamba', '{option}']; import vimamba_command\n"
            "assert vimamba_command.main() == 0 and 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("vimamba")


def test_list_models_says_what_matters_without_torch():
    options = ["vim_tiny*", "--family", "vim", "--max-params", "7.2", "--json"]
    code = (
        f"import sys; sys.argv = ['vimamba', 'list-models', *{options}]; import vimamba_command\n"
        "assert vimamba_command.main() == 0 and 'torch' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = {row["name"]: row for row in json.loads(process.stdout)}
    assert list(rows) == ["vim_tiny_patch16_224", "vim_tiny_rope_patch16_224"]
    assert rows["vim_tiny_patch16_224"]["top1"] == 76.1
    assert rows["vim_tiny_patch16_224"]["license"]
    assert 6e6 < rows["vim_tiny_patch16_224"]["params"] < 8e6


@pytest.mark.parametrize("args", ["vit*", "--all", "--import own.py", "--import=own", "test_vim"])
def test_list_models_asks_the_registry_for_what_is_not_stored(args):
    assert lists_stored_models(["list-models", *args.split()]) == (args == "vit*")


@pytest.mark.draws
@pytest.mark.parametrize("size", ["6x5", "3x4x2"])
def test_visualize_draws_a_scan_order(tmp_path, size):
    out = tmp_path / "hilbert.png"
    assert main(["visualize", "scan", "--order", "hilbert", "--size", size, "-o", str(out)]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 100


def test_a_run_that_fails_before_its_first_epoch_ends_leaves_its_name_free(
    recipe, tmp_path, monkeypatch, capsys
):
    out, given = tmp_path / "run", ["fit", "-c", str(recipe), "--trainer.max_epochs", "1"]

    def fail(*args: object) -> None:
        raise NotFiniteError("for this test")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", fail)
        assert main([*given, "--out", str(out)]) == 2
    assert "no epoch was finished" in capsys.readouterr().err
    # an incomplete epoch is kept if the user stopped it
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", stop)
        assert main([*given, "--out", str(out)]) == 130
    assert main([*given, "--out", str(out)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def stop(*args: object) -> None:
    raise KeyboardInterrupt


def test_licenses_are_filtered_and_unknown_ones_reported(capsys):
    assert main(["list-models", "vim*", "--license", "Apache-2.0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert {row["license"] for row in rows} == {"apache-2.0"}
    assert main(["list-models", "vim*", "--license", "gpl"]) == 2
    assert "choose from apache-2.0" in capsys.readouterr().err


def test_the_help_of_fit_lists_every_task(capsys):
    from vimamba.tasks.registry import list_tasks

    assert main(["fit", "--help"]) == 0
    (line,) = (n for n in capsys.readouterr().out.splitlines() if n.startswith("  --task"))
    assert all(name in line for name in list_tasks())
    quick = (
        "import sys; from vimamba.cli import main; main(['fit', '--help'])\n"
        "assert 'pytorch_lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (fast,) = (n for n in done.stdout.splitlines() if n.startswith("  --task"))
    assert "classification (default)" in fast
    assert "segmentation" in fast


def test_a_second_run_does_not_overwrite_the_first(run, recipe, capsys):
    assert main(["fit", "-c", str(recipe), "--out", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_dry_run_writes_nothing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--model", "test_vit", "--img-size", "32", "--workers", "0", "--dry-run"]
    assert main(["fit", "--data", str(folder), *args]) == 0
    assert "batch (36, 3, 32, 32)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
