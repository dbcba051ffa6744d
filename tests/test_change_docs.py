"""Every command of docs/change.md runs."""

import numpy as np
import onnx
from PIL import Image

from tests.documents import ROOT, SETUP, find_commands, find_missing_links, read, shortened
from vimamba.cli import main

PAGE = "docs/change.md"
SMALL = "{depths: [1, 1, 1, 1], dims: [8, 16, 24, 32]}"


def write_growth(folder, rng):
    """Pairs with a bright square that appears, and two further dates."""
    for number in range(8):
        before = rng.integers(60, 120, (40, 44, 3))
        after, label = before + 20, np.zeros((40, 44))
        after[8:24, number : number + 20], label[8:24, number : number + 20] = 235, 255
        images = {"growth/A": before, "growth/B": after, "growth/label": label}
        images |= {"2020": before, "2025": after} if number < 2 else {}
        for place, values in images.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / place / f"{number}.png")


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    write_growth(tmp_path, np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    commands = [c for c in find_commands(read(PAGE)) if not c.startswith(SETUP)]
    assert len(commands) == 6
    for command in commands:
        argv = [argument for argument in shortened(command) if argument != "--pretrained"]
        if argv[0] == "fit":
            argv += ["--img-size", "32", "--workers", "0", "--model.head", "fpn"]
            argv += ["--model.model_kwargs", SMALL]
        if argv[0] == "export":
            argv += ["--fixed-size"]
        assert main(argv) == 0, command
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    (image,) = onnx.load("growth.onnx").graph.input
    sizes = [dim.dim_value or dim.dim_param for dim in image.type.tensor_type.shape.dim]
    assert sizes == ["batch", 2, 3, 32, 32]


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(read(PAGE), (ROOT / PAGE).parent) == []
