"""Every command of docs/cross_validation.md runs."""

import nibabel
import numpy as np
import pytest

from tests.documents import ROOT, find_commands, find_missing_links, read, shortened, write_photos
from vimamba.cli import cross_validation, main

PAGE = "docs/cross_validation.md"
TEXT = read(PAGE)
SMALL = {
    "vm_unet": ["--model.model_kwargs", "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"],
    "vim_tiny_patch16_224": ["--model.model_kwargs", "{depth: 1, embed_dim: 32}"],
}


@pytest.fixture
def start_folder(tmp_path, monkeypatch):
    """Photos and volumes; folds are trained in this process."""
    write_photos(tmp_path / "photos", [f"p{i // 2}_{i}.png" for i in range(8)])
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "ct" / kind).mkdir(parents=True)
    for name in "abcde":
        organ = np.zeros((24, 20, 4), dtype=np.uint8)
        organ[5:15, 4:12, 1:3] = 1
        values = rng.normal(-50, 30, organ.shape) + 200.0 * organ
        for kind, array in (("images", values.astype(np.int16)), ("masks", organ)):
            volume = nibabel.Nifti1Image(array, np.diag([-0.8, -0.8, 3, 1]))
            nibabel.save(volume, tmp_path / "ct" / kind / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cross_validation, "run_fit", lambda args: main(["fit", *args]))
    return tmp_path


def made_small(command):
    argv = shortened(command)
    if argv[0] == "cross-validate" and "--resume" not in argv:
        argv += ["--epochs", "1", "--batch-size", "4", "--folds", "2"]
    if "--model" in argv:
        model = argv[argv.index("--model") + 1]
        argv += ["--img-size", "32", "--workers", "0", *SMALL[model]]
    return argv


def test_the_commands_of_the_page_run(start_folder):
    commands = find_commands(TEXT)
    assert len(commands) >= 7
    for command in commands:
        assert main(made_small(command)) == 0, command
    for name in ("cases.csv", "folds.csv", "summary.json", "folds.png", "confusion_matrix.png"):
        assert f"| `{name}` |" in TEXT
        assert (start_folder / "cv" / "ct" / name).stat().st_size > 100
    assert (start_folder / "runs" / "fold0" / "cases_val.csv").exists()
    found = nibabel.load("organs/a.nii.gz")
    np.testing.assert_array_equal(found.affine, nibabel.load("ct/images/a.nii.gz").affine)


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(TEXT, (ROOT / PAGE).parent) == []
