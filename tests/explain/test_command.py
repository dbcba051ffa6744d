"""`vimamba explain`, and the commands of docs/explain.md."""

import numpy as np
import pytest

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
