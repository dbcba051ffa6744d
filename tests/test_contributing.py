"""Additions as described in docs/CONTRIBUTING.md: an order, a data set, a network.

A task is tests/tasks/rotation, a family of backbones docs/own_model.md.
"""

import csv
import json
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vimamba
from tests.documents import ROOT, find_missing_links, find_snippets, read
from vimamba import plugins
from vimamba.cli import main
from vimamba.networks import registry as networks

DOCUMENT = read("docs/CONTRIBUTING.md")
EXAMPLES = ROOT / "tests" / "examples"


@pytest.fixture
def forgotten(monkeypatch):
    """Remove what a test imported and registered."""
    monkeypatch.setattr(networks, "_NETWORKS", dict(networks._NETWORKS))
    monkeypatch.setattr(plugins, "_LOADED", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("named_images", "scan_net"):
        sys.modules.pop(name, None)


def run(command, file, *args):
    """Run a command that imports an example."""
    given = ["--trainer.accelerator", "cpu"] if command == "fit" else []
    return main([command, "--import", str(EXAMPLES / file), *map(str, args), *given])


def test_the_order_of_the_page_is_one(own_orders):
    (snippet,) = find_snippets(DOCUMENT)
    exec(snippet, {})
    assert vimamba.scan_paths("diagonal_first", 2, 3).tolist() == [[0, 1, 3, 2, 4, 5]]
    assert vimamba.scan_paths("diagonal_first(rising=True)", 2, 3).tolist() == [[3, 0, 4, 1, 5, 2]]
    model = timm.create_model("test_vim", scan_order=["diagonal_first", "raster"], num_classes=2)
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, 2)


def test_a_data_set_in_one_file_is_trained_on_scored_and_predicted(forgotten, tmp_path, capsys):
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, brightness in (("cat", 60), ("dog", 190)):
        for i in range(8):
            pixels = rng.normal(brightness, 30, (20, 26, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(photos / f"{name}_{i}.png")
    out = tmp_path / "run"
    options = ["--data.class_path", "named_images.NamedImages", "--data", photos]
    options += ["--model", "test_vim", "--img-size", "32", "--epochs", "1", "--workers", "0"]
    assert run("fit", "named_images.py", *options, "--out", out) == 0
    assert run("test", "named_images.py", out) == 0
    report = json.loads((out / "metrics.json").read_text())["test"]
    assert [row["class"] for row in report["per_class"]] == ["cat", "dog"]
    table = tmp_path / "found.csv"
    assert run("predict", "named_images.py", out, photos, "--out", table) == 0
    with table.open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} <= {"cat", "dog"}
    capsys.readouterr()
    options += ["--data.classes", "[dog]", "--out", tmp_path / "other"]
    assert run("fit", "named_images.py", *options) == 2
    assert "['cat'] are not among ['dog']" in capsys.readouterr().err


def test_a_network_in_one_file_is_trained_scored_saved_and_loaded(forgotten, tmp_path):
    rng = np.random.default_rng(0)
    data, out = tmp_path / "data", tmp_path / "run"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((30, 42), dtype=np.uint8)
        mask[4:14, 2 + i : 12 + i] = 1
        image = rng.integers(0, 60, (30, 42, 3)) + 150 * mask[..., None]
        Image.fromarray(image.astype(np.uint8)).save(data / "images" / f"{i}.png")
        Image.fromarray(mask).save(data / "masks" / f"{i}.png")
    options = ["--task", "segmentation", "--model", "scan_net", "--data", data, "--out", out]
    options += ["--model.model_kwargs", "{scan_order: [cross, hilbert]}", "--img-size", "32"]
    options += ["--epochs", "1", "--workers", "0"]
    assert run("fit", "scan_net.py", *options) == 0
    assert run("test", "scan_net.py", out) == 0
    assert json.loads((out / "metrics.json").read_text())["test"]["per_class"][1]["pixels"] > 0
    assert run("predict", "scan_net.py", out, data / "images", "--out", tmp_path / "masks") == 0
    assert np.asarray(Image.open(tmp_path / "masks" / "0.png")).shape == (30, 42)
    net = vimamba.load_segmenter(out / "export")
    assert [mixer.scan_order for mixer in net.mixers] == ["cross", "hilbert"]
    assert net(torch.rand(1, 3, 30, 42)).shape == (1, 1, 30, 42)


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(DOCUMENT, ROOT / "docs") == []
