"""`vimamba explain`, and the commands of docs/explain.md."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vimamba
from tests.documents import (
    ROOT,
    find_commands,
    find_missing_links,
    find_snippets,
    read,
    shortened,
    write_photos,
)
from vimamba.cli import main
from vimamba.cli.networks import Network
from vimamba.errors import UsageError

pytestmark = pytest.mark.draws

pytest.importorskip("pytorch_grad_cam")
DOCUMENT = read("docs/explain.md")
SMALL = {"vim_tiny_patch16_224": "test_vim", "vmamba_tiny_s1l8": "test_vmamba"}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", [f"{i}.jpg" for i in range(6)], size=(96, 96))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_pictures_and_arrays(photos):
    image = "photos/cat/0.jpg"
    whats = ["cam", "attention", "erf", "delta", "paths"]
    given = [image, "photos/dog/0.jpg", "--point", "10", "20", "--what", *whats]
    assert main(["explain", "test_vim", *given, "--out", "seen"]) == 0
    pictures = {f"{name}_{what}.png" for name in ("0", "0_2") for what in whats if what != "erf"}
    arrays = {"0.npz", "0_2.npz", "erf.png", "erf.npz"}
    assert {path.name for path in (photos / "seen").iterdir()} == pictures | arrays
    with np.load(photos / "seen" / "0.npz") as kept:
        assert kept["cam"].shape == (96, 96)
        assert kept["attention_paths"].shape == (2, 6, 6)
        assert kept["delta/blocks.0.mixer.scan"].shape == (2, 6, 6)


@pytest.fixture
def windows():
    """A network that keeps the resolution of images and takes windows of 8 x 12."""
    settings = {"img_size": [8, 12], "in_chans": 1, "fit": "window", "interpolation": "bilinear"}
    settings |= {"mean": [0.0], "std": [1 / 255]}
    net = torch.nn.Identity()
    return Network(net, "windows", (1, 8, 12), {}, preprocessing=settings)


def write_ramp(path):
    """An image of 20 x 10 whose pixel is its row and column, 10 * y + x."""
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(20, 10)).save(path)
    return path


def test_a_network_of_windows_sees_the_middle_and_says_so(windows, tmp_path, capsys):
    path = write_ramp(tmp_path / "ramp.png")
    image, point = windows.read_window(path, None)
    assert point is None
    assert image.shape == (1, 8, 12)
    # rows 6 to 13 of 20; 10 columns between zeros
    ramp = torch.arange(200.0).reshape(20, 10)
    torch.testing.assert_close(image[0, :, 1:11], ramp[6:14], atol=1e-3, rtol=0)  # of up to 255
    assert image[0, :, [0, 11]].abs().max() == 0
    said = capsys.readouterr().out
    assert said == f"{path}: the central window of 8 x 12; --point Y X moves it\n"
    torch.testing.assert_close(windows.read([path]), image)


@pytest.mark.parametrize("point", [(0, 0), (3, 9), (10, 5), (19, 2)])
def test_a_network_of_windows_sees_the_point(windows, tmp_path, capsys, point):
    image, (y, x) = windows.read_window(write_ramp(tmp_path / "ramp.png"), point)
    assert image.shape == (1, 8, 12)
    assert image[0, y, x] == pytest.approx(10 * point[0] + point[1], abs=1e-3)
    assert capsys.readouterr().out == ""


def test_the_point_is_of_the_image_before_it_is_resized(windows, tmp_path):
    wide = replace(windows, preprocessing={**windows.preprocessing, "scale_to": 20})
    image, (y, x) = wide.read_window(write_ramp(tmp_path / "ramp.png"), (10, 5))
    # row 20, column 10 of 40 x 20: between four pixels
    assert image[0, y, x] == pytest.approx(103, abs=3)


def test_a_point_outside_the_image_is_refused(windows, tmp_path):
    path = write_ramp(tmp_path / "ramp.png")
    with pytest.raises(UsageError, match=r"--point 3 10 is outside .*ramp.png, 20 x 10 pixels"):
        windows.read_window(path, (3, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["test_mlla", "photos/cat/0.jpg", "--what", "attention"], "has no selective scan"),
        (["test_vim", "none.jpg"], "none.jpg is not a file"),
        (["test_vim", "photos/cat/0.jpg", "--target", "cat"], "--target cat is not a class"),
        (["test_vim", "photos/cat/0.jpg", "--what", "delta", "--layer", "x"], "--layer x is no"),
    ],
)
def test_mistakes_are_one_line(photos, capsys, options, message):
    assert main(["explain", *options, "--out", "seen"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_network_of_two_dates_is_refused(photos, capsys, monkeypatch):
    net = vimamba.create_change_detector("test_vmamba", num_classes=2).eval()
    network = Network(net, "test_vmamba", (3, 64, 64), {})
    monkeypatch.setattr("vimamba.cli.explain.open_network", lambda given: network)
    assert main(["explain", "runs/dates", "photos/cat/0.jpg", "--out", "seen"]) == 2
    assert "test_vmamba takes two dates; explain is for networks of one" in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_and_snippets_of_the_page_run(photos):
    fit = ["fit", "--data", "photos", "--model", "test_vim", "--epochs", "1"]
    assert main([*fit, "--workers", "0", "--out", "runs/photos"]) == 0
    for command in find_commands(DOCUMENT):
        for name, other in SMALL.items():
            command = command.replace(name, other)
        arguments = [a for a in shortened(command) if a != "--pretrained"]
        assert main(arguments) == 0, command
    for snippet in find_snippets(DOCUMENT):
        exec(compile(snippet, "explain.md", "exec"), {"__name__": "__main__"})


def test_the_page_links_to_existing_files():
    assert find_missing_links(DOCUMENT, ROOT / "docs") == []
