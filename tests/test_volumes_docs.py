"""Every command of docs/volumes.md runs."""

import shutil

import nibabel
import numpy as np

from tests.dicom_series import write_series
from tests.documents import ROOT, SETUP, find_commands, find_missing_links, read, shortened
from tests.volumes import make_volume, store
from vimamba.cli import main

PAGE = "docs/volumes.md"
SMALL = [
    *("--model.model_kwargs", "{dims: [4, 8], depths: [0, 1]}", "--patch-size", "8x16x16"),
    *("--workers", "0", "--data.patches", "1"),
]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcde"):
        for kind, volume in zip(("images", "masks"), make_volume(number), strict=True):
            store(tmp_path / "ct" / kind / f"{name}.nii.gz", volume, "RAS")
    commands = [c for c in find_commands(read(PAGE)) if not c.startswith(SETUP)]
    assert len(commands) == 6
    write_series(tmp_path / "study", make_volume(9)[0])
    for command in commands:
        argv = shortened(command)
        assert main(argv + (SMALL if argv[0] == "fit" else [])) == 0, command
        if argv[0] == "fit":  # another run of the same task
            shutil.copytree("runs/ct", "runs/ct2")
    assert nibabel.load("found/study.nii.gz").shape == (20, 24, 12)
    found = nibabel.load("organs/a.nii.gz")
    np.testing.assert_array_equal(found.affine, nibabel.load("ct/images/a.nii.gz").affine)


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(read(PAGE), (ROOT / PAGE).parent) == []
