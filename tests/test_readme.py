"""Every command and snippet of the README runs."""

import re
import subprocess
import sys

import pytest
import timm.models
import torch

from tests.documents import ROOT, SETUP, find_commands, find_snippets, read, shortened, write_photos
from tests.parity.official import filled_state
from tools.model_table import summary_text, with_tables
from vimamba.cli import main
from vimamba.scan_orders import registry

pytestmark = pytest.mark.draws

README = read("README.md")
SNIPPETS = find_snippets(README)
COMMANDS = find_commands(README)
OFFICIAL = "vssm1_tiny_0230s_ckpt_epoch_264.pth"


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("official") / OFFICIAL
    torch.save({"model": filled_state("vmamba_tiny_s1l8")}, file)
    return file


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory, official_file):
    """A folder with what the README assumes: photos and a downloaded checkpoint."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / OFFICIAL).symlink_to(official_file)
    write_photos(folder / "photos", [f"{i}.jpg" for i in range(10)])
    return folder


def made_small(command):
    argv = shortened(command)
    small = ["--model.model_kwargs", "{depth: 2, embed_dim: 48}", "--workers", "0"]
    return argv + (small if argv[0] == "fit" else [])


def test_the_commands_of_the_readme_run(start_folder, monkeypatch, capsys):
    monkeypatch.chdir(start_folder)
    commands = [c for c in COMMANDS if not c.startswith(SETUP)]
    assert len(commands) >= 5
    for command in commands:
        assert main(made_small(command)) == 0, command
    assert "vmamba_tiny_s1l8" in capsys.readouterr().out
    assert (start_folder / "hilbert.png").stat().st_size > 10_000
    assert len((start_folder / "predictions.csv").read_text().splitlines()) == 21
    for made in ("curves.png", "confusion_matrix.png", "samples.png", "export/model.safetensors"):
        assert (start_folder / "runs" / "photos" / made).exists()


@pytest.fixture
def offline_weights(official_file, monkeypatch):
    """Only the download is replaced."""
    asked = []

    def download(url, **kwargs):
        asked.append(url)
        return str(official_file)

    monkeypatch.setattr(timm.models._builder, "download_cached_file", download)
    return asked


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[s.strip().splitlines()[-1] for s in SNIPPETS])
def test_a_snippet_of_the_readme_runs(snippet, start_folder, monkeypatch, offline_weights):
    monkeypatch.chdir(start_folder)
    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    export = start_folder / "runs" / "photos" / "export" / "model.safetensors"
    if (
        "runs/photos" in snippet and not export.exists()
    ):  # in a process that has not run a command yet
        fit = next(c for c in COMMANDS if c.startswith("vimamba fit --data photos"))
        assert main(made_small(fit)) == 0
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    if "pretrained=True).eval()" in snippet:
        assert offline_weights == [
            f"https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/{OFFICIAL}"
        ]


def test_the_table_of_families_is_what_the_registry_says():
    assert with_tables(README, summary_text()) == README


def test_the_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"`(tests/\S+\.py)`", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_setup_commands_are_known():
    setup = [c for c in COMMANDS if c.startswith(SETUP)]
    assert setup == ["pip install .", 'pip install ".[train]"', "make demo", "make test"]


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy(tmp_path):
    demo = [sys.executable, str(ROOT / "tools" / "demo.py")]
    run = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    accuracy = float(re.search(r"test accuracy\D+([\d.]+)", run.stdout, re.IGNORECASE)[1])
    assert (accuracy if accuracy > 1 else 100 * accuracy) >= 97
