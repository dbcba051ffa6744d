"""Every command of docs/scanbench.md is valid, and its report is written."""

from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scikit_posthocs")
from tests.documents import ROOT, find_commands, find_missing_links, read, shortened, write_photos
from vimamba.cli import bench_runs, main, scanbench

PAGE = "docs/scanbench.md"
TEXT = read(PAGE)
TINY = "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"


class InThisProcess:
    """Trains some runs of a call and stops, because all would take too long."""

    def __init__(self, left):
        self.left = left

    def submit(self, job):
        future = Future()
        self.left -= 1
        stopped = bench_runs.Outcome(bench_runs.INTERRUPTED, 0.0)
        future.set_result(bench_runs.train(job) if self.left >= 0 else stopped)
        return future

    def interrupt(self):
        pass

    def close(self):
        pass


@pytest.fixture
def start_folder(tmp_path, monkeypatch):
    """Photos and cells."""
    write_photos(tmp_path / "photos", [f"{i}.png" for i in range(8)], size=(32, 32))
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "cells" / kind).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[4:20, 2 + number : 18 + number] = 1
        pixels = (rng.integers(0, 60, mask.shape) + 150 * mask).astype(np.uint8)
        for kind, array in (("images", pixels), ("masks", mask)):
            Image.fromarray(array).save(tmp_path / "cells" / kind / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        scanbench, "open_pool", lambda given: InThisProcess(0 if given.resume else 2)
    )
    return tmp_path


def made_small(command):
    argv = shortened(command)
    if "--data" not in argv:
        return argv
    small = ["--epochs", "1", "--img-size", "32", "--batch-size", "4", "--workers", "0"]
    if argv[argv.index("--model") + 1] == "vmamba_tiny_s1l8":
        argv[argv.index("--model") + 1] = "test_vmamba"
        return argv + small
    return [*argv, *small, "--model.model_kwargs", TINY]


def test_the_commands_of_the_page_run(start_folder):
    commands = find_commands(TEXT)
    assert len(commands) == 6
    for command in commands:
        argv = made_small(command)
        # training commands are stopped, and reports cover the existing runs
        expected = 0 if "--report" in argv else 130
        assert main(argv) == expected, command
    for name in ("report.html", "results.csv", "costs.json"):
        assert f"| `{name}` |" in TEXT
        assert (start_folder / "runs" / "bench" / name).stat().st_size > 100
    assert (start_folder / "runs" / "both" / "report.md").stat().st_size > 1000


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(TEXT, (ROOT / PAGE).parent) == []
