"""Every command and snippet of docs/nnunet.md runs, in order, on a small data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.documents import ROOT, SETUP, find_commands, find_missing_links, find_snippets, read

pytestmark = pytest.mark.draws

PAGE = "docs/nnunet.md"
NAME = "Dataset901_Shapes"
TEST_CASES = {"case_8": (64, 80), "case_9": (96, 64)}


@pytest.fixture
def start_folder(tmp_path):
    """A folder with what the page assumes: a data set in nnU-Net's format."""
    rng = np.random.default_rng(0)
    data = tmp_path / "raw" / NAME
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (data / folder).mkdir(parents=True)
    for folder in ("preprocessed", "results"):
        (tmp_path / folder).mkdir()
    train = {f"case_{i}": (64 + 8 * (i % 2), 80) for i in range(6)}
    for name, size in {**train, **TEST_CASES}.items():
        label = np.zeros(size, dtype=np.uint8)
        label[10:50, 12:60] = 1
        label[20:30, 20:34] = 2
        pixels = rng.normal(40 + 80.0 * label, 12).clip(0, 255).astype(np.uint8)
        folder = "imagesTr" if name in train else "imagesTs"
        Image.fromarray(pixels).save(data / folder / f"{name}_0000.png")
        if name in train:
            Image.fromarray(label).save(data / "labelsTr" / f"{name}.png")
    description = {
        "channel_names": {"0": "gray"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": len(train),
        "file_ending": ".png",
    }
    (data / "dataset.json").write_text(json.dumps(description))
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_page_run(start_folder, monkeypatch):
    commands = [c for c in find_commands(read(PAGE)) if not c.startswith(SETUP)]
    assert len(commands) >= 10
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COMMANDS": json.dumps(commands),
        "VIMAMBA_NNUNET_EPOCHS": "1",
        "VIMAMBA_NNUNET_ITERS": "2",
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
    }
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("nnunet_driver.py"))],
        cwd=start_folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    for found in ("umamba", "vmamba", "mine"):
        for name, size in TEST_CASES.items():
            labels = np.array(Image.open(start_folder / "found" / found / f"{name}.png"))
            assert labels.shape == size
            assert set(np.unique(labels)) <= {0, 1, 2}
    for model in (start_folder / "results" / NAME).iterdir():
        assert (model / "fold_0" / "checkpoint_final.pth").exists()
        summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
        assert 0 <= summary["foreground_mean"]["Dice"] <= 1
    monkeypatch.chdir(start_folder)
    for snippet in find_snippets(read(PAGE)):
        exec(compile(snippet, PAGE, "exec"), {"__name__": "__main__"})
    plans = start_folder / "preprocessed" / NAME / "nnUNetPlans_vimamba.json"
    assert "2d_umamba_enc_2d" in json.loads(plans.read_text())["configurations"]


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(read(PAGE), ROOT / "docs") == []
