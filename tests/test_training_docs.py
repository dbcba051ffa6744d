"""Every command of docs/training.md runs."""

import pytest

from tests.documents import ROOT, find_commands, find_missing_links, read, shortened, write_photos
from vimamba.cli import main

PAGE = "docs/training.md"
TEXT = read(PAGE)
SMALL = "{patch_size: 8, depth: 1, embed_dim: 16, num_heads: 2}"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", [f"{i}.png" for i in range(12)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made_small(command):
    """The command with a network that compiles nothing."""
    argv = shortened(command)
    if "--model" in argv:
        argv[argv.index("--model") + 1] = "test_vit"
        argv += ["--img-size", "16", "--workers", "0", "--model.model_kwargs", SMALL]
    return argv


def test_the_commands_of_the_page_run(photos):
    commands = find_commands(TEXT)
    assert len(commands) >= 9
    for command in commands:
        assert main(made_small(command)) == 0, command
    for name in ("compare.png", "compare.csv", "compare.md"):
        assert f"`{name}`" in TEXT
        assert (photos / "comparison" / name).stat().st_size > 100
    assert (photos / "runs" / "found" / "lr_find.png").exists()
    assert (photos / "runs" / "logged" / "csv" / "version_0" / "metrics.csv").exists()


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(TEXT, (ROOT / PAGE).parent) == []
