"""Every command and snippet of docs/registration.md runs."""

import pytest
from demo_registration import draw_case, write_case

from tests.documents import (
    ROOT,
    SETUP,
    find_commands,
    find_missing_links,
    find_snippets,
    read,
    shortened,
)
from vimamba.cli import main

PAGE = "docs/registration.md"


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    itk = pytest.importorskip("SimpleITK")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcdefgh"):
        write_case(tmp_path / "brains", name, *draw_case(number, (16, 16, 16), 2.0))
    small = ["--model.model_kwargs", "{embed_dim: 6, head_dim: 4}", "--workers", "0"]
    for command in find_commands(read(PAGE)):
        if not command.startswith(SETUP):
            argv = shortened(command)
            assert main([*argv, *(small if argv[0] == "fit" else [])]) == 0, command
    assert (tmp_path / "registered" / "a_to_b_checkerboard.png").is_file()
    (snippet,) = find_snippets(read(PAGE))
    found = {}
    exec(compile(snippet, PAGE, "exec"), found)
    assert found["moved"].GetSize() == itk.ReadImage("brains/images/b.nii.gz").GetSize()


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(read(PAGE), (ROOT / PAGE).parent) == []
