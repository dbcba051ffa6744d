"""docs/own_model.md: every command knows the family in its file; errors of --import."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.documents import find_commands, find_snippets, read, shortened
from vimamba import plugins
from vimamba.cli import main
from vimamba.scan_orders import registry

DOCUMENT = read("docs/own_model.md")


@pytest.fixture
def start_folder(tmp_path, monkeypatch):
    """A folder with the page's file and photos; removes what was registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    monkeypatch.setattr(plugins, "_LOADED", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    rng = np.random.default_rng(0)
    for name, brightness in (("cat", 60), ("dog", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.normal(brightness, 30, (20, 26, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (snippet,) = find_snippets(DOCUMENT)
    (tmp_path / "own.py").write_text(snippet)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("own", "broken", "package"):
            del sys.modules[name]


def test_the_family_of_the_page_is_known_to_every_command(start_folder, capsys):
    commands = find_commands(DOCUMENT)
    assert len(commands) == 4
    for command in commands:
        assert main(shortened(command)) == 0, command
    assert len((start_folder / "predictions.csv").read_text().splitlines()) == 17
    assert (start_folder / "comb-model" / "model.safetensors").exists()
    capsys.readouterr()
    assert main(["list-models", "comb", "--import", "own.py"]) == 0
    assert "comb_nano" in capsys.readouterr().out
    backbone = timm.create_model("comb_nano", features_only=True, in_chans=5)
    shapes = [tuple(feature.shape[1:]) for feature in backbone(torch.rand(1, 5, 64, 32))]
    assert shapes == [(32, 16, 8), (64, 8, 4)]


def test_the_error_of_an_unknown_model_names_the_option(start_folder, capsys):
    for command in (["doctor", "surely_unknown"], ["fit", "--data", "photos", "--model", "surely"]):
        assert main(command) == 2
        assert "--import" in capsys.readouterr().err


BROKEN = {
    "raise ValueError('no\\nway')": "broken.py, line 2: ValueError: no way",
    "def f(:": "broken.py, line 2: ",
    "import not_there_at_all": "broken.py, line 2: ModuleNotFoundError: No module named",
    "raise SystemExit(3)": "broken.py, line 2: SystemExit: 3",
}


@pytest.mark.parametrize("code", BROKEN)
def test_an_error_in_the_users_file_is_one_line(code, start_folder, capsys):
    (start_folder / "broken.py").write_text(f"x = 1\n{code}\n")
    assert main(["list-models", "--import", "broken.py"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --import broken.py: ")
    assert BROKEN[code] in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--import", "gone.py"], "--import gone.py: there is no file gone.py"),
        (["--import", "gone_module"], "No module named 'gone_module'; name a file with"),
        (["--import", "timm.py"], "a module timm already exists"),
        (["--import", "my-own.py"], "must be a Python identifier"),
        (["--import"], "--import needs the name of a module or a file"),
        (["--import="], "--import needs the name of a module or a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_imported_is_named(args, message, start_folder, capsys):
    for name in ("timm.py", "my-own.py"):
        (start_folder / name).touch()
    assert main(["list-models", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_package_is_imported_from_its_folder_and_modules_by_name(start_folder):
    (start_folder / "package").mkdir()
    (start_folder / "package" / "__init__.py").write_text("from package import inner\n")
    (start_folder / "package" / "inner.py").write_text("VALUE = 3\n")
    plugins.load_plugins(["package", "json"])
    assert sys.modules["package"].inner.VALUE == 3
    assert plugins.is_plugin("package.inner")
    assert not plugins.is_plugin("packages")
    plugins.load_plugins(["package"])  # importing it again gives the same module


def test_installed_packages_are_known_by_their_entry_point(start_folder, monkeypatch, capsys):
    folder = start_folder / "site"
    (folder / "comb-1.0.dist-info").mkdir(parents=True)
    (folder / "comb-1.0.dist-info" / "METADATA").write_text("Name: comb\nVersion: 1.0\n")
    points = "[vimamba.plugins]\ncomb = own\n"
    (folder / "comb-1.0.dist-info" / "entry_points.txt").write_text(points)
    (start_folder / "own.py").rename(folder / "own.py")
    monkeypatch.syspath_prepend(str(folder))
    assert main(["visualize", "scan", "--order", "comb", "--out", "comb.png"]) == 0


def test_a_file_is_found_by_new_processes(start_folder):
    plugins.load_plugins(["own.py"])
    code = "import multiprocessing as m, own\nprint(own.CombMamba.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path = {sys.path!r}\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "CombMamba", done.stderr
