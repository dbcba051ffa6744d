import os
from pathlib import Path

import pytest

from vimamba.data import DataError
from vimamba.errors import UsageError
from vimamba.tasks.outputs import (
    FailedInputs,
    Target,
    check_apart,
    check_inside,
    check_no_input,
    output_name,
    reason,
    shown,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b", "a/b"),
        ("../data/t0", "data/t0"),
        ("/mnt/data/t0", "mnt/data/t0"),
        ("a/../../../b", "a/b"),
        (r"C:\data\t0", "C_/data/t0"),
        (r"..\t0", "t0"),
        (r"\\server\share\t0", "server/share/t0"),
        ("two\nlines", "two_lines"),
        ("what?", "what_"),
        (".part-x/.hidden", "_part-x/_hidden"),
        ("con/nul", "_con/_nul"),
        ("end./x", "end_/x"),
        ("ünï", "ünï"),
    ],
)
def test_an_output_stays_in_its_folder_whatever_its_inputs_name(path, name):
    assert output_name(path, ".png") == name


def test_long_names_are_cut_and_stay_apart():
    names = [output_name("ä" * 200 + end, ".png") for end in "ab"]
    assert names[0] != names[1]
    assert all(len(os.fsencode(name + ".png")) <= 255 for name in names)
    assert output_name("a" * 251, ".png") == "a" * 251


@pytest.mark.parametrize(
    "names",
    [
        ("a/x.png", "a/x.png"),
        ("X.png", "x.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("x.png", "x.png/y.png"),
    ],
)
def test_outputs_that_a_file_system_cannot_distinguish_are_refused(names):
    targets = [Target(Path("out") / name, f"input {i}") for i, name in enumerate(names)]
    with pytest.raises(UsageError, match=r"input [01].*input [01]"):
        check_apart(targets)


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data").symlink_to(tmp_path)
    check_inside([Target(tmp_path / "out" / "new" / "x.png", "x")], tmp_path / "out")
    with pytest.raises(UsageError, match="points outside of"):
        check_inside([Target(tmp_path / "out" / "data" / "x.png", "x")], tmp_path / "out")


def test_nothing_that_is_read_is_overwritten(tmp_path):
    (tmp_path / "list.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "list.csv")
    with pytest.raises(UsageError, match="is an input"):
        check_no_input([Target(tmp_path / "link.csv", "x")], [tmp_path / "list.csv"])


def test_failed_inputs_are_counted_and_named(capsys):
    failed = FailedInputs()
    assert failed.report(4) == 0
    for number in range(8):
        failed.add(f"{number}.png", reason(DataError(f"image {number}.png cannot be read")))
    failed.add("0.png", reason(ZeroDivisionError("by zero")))
    assert failed.report(9) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "no prediction for 8 of 9 inputs:"
    assert lines[1] == "  0.png: ZeroDivisionError: by zero"
    assert lines[2] == "  image 1.png cannot be read"
    assert lines[-1] == "  and 3 more"


def test_names_are_shown_in_one_line():
    assert shown("a\nb\udce9é") == "a\\nb\\udce9é"
